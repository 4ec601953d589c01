# The paper's tables (arXiv v1 numbering), for any study: `snakemake --cores 2 table_1`. Each waits for the runs that it
# shows, and for no other: one table of a large study, or all but those that a failing run stands in, can be had alone.
for number in range(1, 7):

    rule:
        name: f"table_{number}"
        message: f"table {number} of the paper"
        input:
            table_inputs(number),
            study=STUDY_JSON,
            published=f"{PUBLISHED}/published.csv",
            privacy_status=f"{PUBLISHED}/privacy_status.csv",
        output:
            multiext(f"{ROOT}/tables/table_{number}", ".csv", ".md", ".tex"),
            html=report(
                f"{ROOT}/tables/table_{number}.html", caption="../report/paper_table.rst", category="The paper's tables"
            ),
        params:
            number=number,
            # Patterns, filled in for every run.
            runs=lambda _: RUN,
            audits=lambda _: rules.audit.output.audit,
            out=subpath(output.html, strip_suffix=".html"),
        log: f"{ROOT}/tables/table_{number}.log"
        resources: mem_mb=growing(2000), runtime=growing(10)
        shell:
            "python -m dpdm paper_table --table {params.number} --study {input.study} --runs {params.runs:q}"
            " --audits {params.audits:q} --published {input.published:q}"
            " --privacy-status {input.privacy_status:q} --out {params.out} > {log} 2>&1"


# No output, so it is made anew whenever it is asked for; no input but what is tracked, so no missing run can hold it up.
# Beside a Snakemake that still works in this folder it needs --nolock: it writes into a folder of its own.
rule partial:
    message: "tables of what is finished, into {params.out}"
    input:
        published=f"{PUBLISHED}/published.csv",
        privacy_status=f"{PUBLISHED}/privacy_status.csv",
    params:
        spec=STUDY_SPEC,
        folders=rules.collect.params.folders,
        runs=lambda _: RUN,
        audits=lambda _: rules.audit.output.audit,
        out=f"{ROOT}/partial",
        numbers=[name.removeprefix("table_") for name in STUDY.tables],
    log: f"{ROOT}/partial/partial.log"
    localrule: True
    shell:
        """
        exec > >(tee {log}) 2>&1
        python -m dpdm validate --spec {params.spec:q} --published {input.published:q} --out {params.out}/study.json
        python -m dpdm collect {params.folders} --unfinished {params.runs:q} --study {params.out}/study.json \
            --metrics {params.out}/metrics.csv --audits {params.out}/audits.csv
        python -m dpdm tables --metrics {params.out}/metrics.csv --audits {params.out}/audits.csv \
            --results {params.out}/results --audit {params.out}/audit
        for number in {params.numbers}; do
            python -m dpdm paper_table --unfinished --table $number --study {params.out}/study.json \
                --runs {params.runs:q} --audits {params.audits:q} --published {input.published:q} \
                --privacy-status {input.privacy_status:q} --out {params.out}/table_$number
        done
        """
