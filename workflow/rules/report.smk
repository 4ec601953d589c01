rule collect:
    message: "collect all scores and audits"
    input:
        scores=[path for name in SCORES for path in set_files(name)],
        classifiers=run_files("utility.json", classifier_runs()),
        anchors=[path for name in SCORES for path in anchor_files(name)],
        audits=rules.audits.input,
        attacks=rules.attacks.input if STUDY.attacks else [],
    output:
        metrics=PATHS.metrics,
        audits=PATHS.audits,
    params: study=STUDY_SPEC  # any edit of the study reruns tables and report
    log: PATHS.log("collect")
    resources: mem_mb=growing(2000), runtime=growing(30)
    shell: f"python -m dpdm collect {PATHS.root} > {{log}} 2>&1"


# dpdm/report/registry.py lists the tables and figures. Captions are for `snakemake --report`.
rule tables:
    message: "tables"
    input:
        metrics=rules.collect.output.metrics,
        audits=rules.collect.output.audits,
    output:
        [PATHS.table(name, kind) for name in TABLES for kind in TABLE_KINDS if kind != ".html"],
        [report(PATHS.table(name, ".html"), caption="../report/tables.rst", category="Tables") for name in TABLES],
    log: PATHS.table("tables", ".log")
    resources: mem_mb=growing(2000), runtime=growing(10)
    shell: f"python -m dpdm tables {PATHS.root} > {{log}} 2>&1"


rule figure:
    message: "figure {wildcards.figure}"
    input:
        rules.tables.input,
        files=lambda w: FIGURES[w.figure][0].files(STUDY, PATHS, FIGURES[w.figure][1]),
    output:
        multiext(PATHS.figure("{figure}"), ".svg", ".pdf"),
        png=report(PATHS.figure("{figure}", ".png"), caption="../report/figure.rst", category="Figures"),
    params: caption=lambda w: FIGURES[w.figure][0].caption
    log: PATHS.figure("{figure}", ".log")
    resources: mem_mb=growing(2000), runtime=growing(30)
    shell: f"python -m dpdm figures {PATHS.root} {{wildcards.figure}} > {{log}} 2>&1"


rule figures:
    input: expand(rules.figure.output, figure=FIGURES)
    localrule: True


rule report:
    message: "report"
    input:
        rules.figures.input,
        metrics=rules.collect.output.metrics,
        audits=rules.collect.output.audits,
        published=PUBLISHED,
        privacy_status=PRIVACY_STATUS,
    output: report(PATHS.report, caption="../report/report.rst", category="Report")
    params: command=shlex.join(["snakemake", "--cores", "2", "report", *["--configfile"] * bool(FILES), *FILES])
    log: PATHS.log("report")
    resources: mem_mb=growing(2000), runtime=growing(10)
    shell: f"python -m dpdm report {PATHS.root} --command {{params.command:q}} > {{log}} 2>&1"
