rule collect:
    input:
        scores=[path for name in SCORES for path in set_files(name)],
        classifiers=run_files("utility.json", [run for run in RUNS if STUDY.is_classifier(run.method)]),
        anchors=[path for name in SCORES for path in anchor_files(name)],
        audits=rules.audits.input,
        attacks=rules.attacks.input if STUDY.attacks else [],
    output:
        metrics=PATHS.metrics,
        audits=PATHS.audits,
    log:
        PATHS.log("collect"),
    conda:
        "../envs/dpdm.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        study=STUDY_SPEC,  # any edit of the study reruns tables and report
    message:
        "collect all scores and audits"
    shell:
        f"python -m dpdm collect {PATHS.root} > {{log}} 2>&1"


# dpdm/report/registry.py lists the tables and figures. Captions are for `snakemake --report`.
rule tables:
    input:
        metrics=rules.collect.output.metrics,
        audits=rules.collect.output.audits,
    output:
        [PATHS.table(name, kind) for name in TABLES for kind in TABLE_KINDS if kind != ".html"],
        [report(PATHS.table(name, ".html"), caption="../report/tables.rst", category="Tables") for name in TABLES],
    log:
        PATHS.table("tables", ".log"),
    conda:
        "../envs/dpdm.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    message:
        "tables"
    shell:
        f"python -m dpdm tables {PATHS.root} > {{log}} 2>&1"


rule figure:
    input:
        rules.tables.input,
        files=lambda w: FIGURES[w.figure][0].files(STUDY, PATHS, FIGURES[w.figure][1]),
    output:
        multiext(PATHS.figure("{figure}"), ".svg", ".pdf"),
        png=report(PATHS.figure("{figure}", ".png"), caption="../report/figure.rst", category="Figures"),
    log:
        PATHS.figure("{figure}", ".log"),
    conda:
        "../envs/dpdm.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        caption=lambda w: FIGURES[w.figure][0].caption,
    message:
        "figure {wildcards.figure}"
    shell:
        f"python -m dpdm figures {PATHS.root} {{wildcards.figure}} > {{log}} 2>&1"


rule figures:
    input:
        expand(rules.figure.output, figure=FIGURES),
    localrule: True


rule report:
    input:
        rules.figures.input,
        rules.tables.output,  # the page links to them
        [PATHS.table(table, ".html") for table in STUDY.tables],
        metrics=rules.collect.output.metrics,
        audits=rules.collect.output.audits,
        published=PUBLISHED,
        privacy_status=PRIVACY_STATUS,
    output:
        report(PATHS.report, caption="../report/report.rst", category="Report"),
    log:
        PATHS.log("report"),
    conda:
        "../envs/dpdm.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        command=command_for("report"),
    message:
        "report"
    shell:
        f"python -m dpdm report {PATHS.root} --command {{params.command:q}} > {{log}} 2>&1"
