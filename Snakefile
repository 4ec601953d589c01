# The workflow is workflow/Snakefile, which another workflow can import as a module (docs/deploying.md).
include: "workflow/Snakefile"


workflow.default_target = "all"  # Snakemake forgets the default target of an included file
