# The paper's tables (arXiv v1 numbering), for any study: `snakemake --cores 2 table_1`. Each table waits only for the
# runs that it shows, so a failing run does not hold up the other tables.
for number in selection.PAPER_TABLES:

    rule:
        name:
            f"table_{number}"
        input:
            selection.table_files(STUDY, PATHS, number, runs=RUNS),
            published=PUBLISHED,
            privacy_status=PRIVACY_STATUS,
        output:
            multiext(PATHS.table(f"table_{number}"), ".csv", ".md", ".tex"),
            html=report(
                PATHS.table(f"table_{number}", ".html"),
                caption="../report/paper_table.rst",
                category="The paper's tables",
            ),
        log:
            PATHS.table(f"table_{number}", ".log"),
        conda:
            "../envs/dpdm.yaml"
        resources:
            mem_mb=growing(2000),
            runtime=growing(10),
        params:
            number=number,
            study=STUDY_SPEC,
        message:
            f"table {number} of the paper"
        shell:
            f"python -m dpdm paper-table {PATHS.root} {{params.number}} > {{log}} 2>&1"
