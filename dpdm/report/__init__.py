"""From result files to tables, figures and one report page; reads files only and imports no torch."""
