# The whole benchmark: a study (one YAML file) becomes independent jobs, each one `python -m dpdm` verb.
#   snakemake --cores 2                                          the default study (profiles/default names it)
#   snakemake --cores 8 tables --configfile config/X.yaml        another study, one target
# Targets: all, audits, attacks, tables, figures, report, the paper's tables (table_1 to table_6; `all` makes those that
# the study names), and partial: tables of what is finished, while a study runs or after some of it failed.


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
        [f"{ROOT}/tables/{table}.html" for table in STUDY.tables],
        rules.figures.input,
        rules.audits.input,
    localrule: True
