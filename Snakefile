# The whole benchmark: a study (one YAML file) becomes independent jobs, each one `python -m dpdm` verb.
#   snakemake --cores 2                                          the default study (profiles/default names it)
#   snakemake --cores 8 tables --configfile config/X.yaml        another study, one target
# Targets: all, audits, attacks, tables, figures, report, and the paper's tables (table_1 to table_6; `all` makes those
# that the study names). A part of a study: --config only='method=dpdm,pearl epsilon=1' (also: without=).


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/tables.smk"


rule all:
    default_target: True
    input:
        rules.report.output,
        rules.tables.output,
        [PATHS.table(table, ".html") for table in STUDY.tables],
        rules.figures.input,
        rules.audits.input,
    localrule: True
