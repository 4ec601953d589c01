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


rule tables:
    message: "tables"
    input:
        metrics=rules.collect.output.metrics,
        audits=rules.collect.output.audits,
    output:
        multiext(PATHS.table("results"), ".csv", ".md", ".tex"),
        multiext(PATHS.table("audit"), ".csv", ".md", ".tex"),
        results=report(PATHS.table("results", ".html"), caption="../report/results.rst", category="Results"),
        audit=report(PATHS.table("audit", ".html"), caption="../report/audit.rst", category="Privacy"),
    log: PATHS.table("tables", ".log")
    resources: mem_mb=growing(2000), runtime=growing(10)
    shell: f"python -m dpdm tables {PATHS.root} > {{log}} 2>&1"


rule figure:
    message: "figures for {wildcards.dataset}"
    input:
        metrics=rules.collect.output.metrics,
        real=rules.prepare.output.train,
        sets=lambda w: [PATHS.set(*run.place, s, "synthetic.npz") for run, s in selection.shown_sets(STUDY, w.dataset)],
    output:
        multiext(PATHS.figure("{dataset}_curves"), ".pdf", ".png"),
        multiext(PATHS.figure("{dataset}_samples"), ".pdf", ".svg"),
        curves=report(PATHS.figure("{dataset}_curves", ".svg"), caption="../report/curves.rst", category="Results"),
        grid=report(PATHS.figure("{dataset}_samples", ".png"), caption="../report/samples.rst", category="Samples"),
    log: PATHS.figure("{dataset}", ".log")
    resources: mem_mb=growing(2000), runtime=growing(30)
    shell: f"python -m dpdm figures {PATHS.root} {{wildcards.dataset}} > {{log}} 2>&1"


rule comparison:
    message: "figure of the whole study: {wildcards.comparison}"
    input: rules.collect.output.metrics
    output:
        multiext(PATHS.figure("{comparison}"), ".pdf", ".png"),
        svg=report(PATHS.figure("{comparison}", ".svg"), caption="../report/comparison.rst", category="Results"),
    log: PATHS.figure("{comparison}", ".log")
    resources: mem_mb=growing(2000), runtime=growing(10)
    shell: f"python -m dpdm comparison {PATHS.root} {{wildcards.comparison}} > {{log}} 2>&1"


rule figures:
    input:
        expand(rules.figure.output, dataset=DATASETS),
        expand(rules.comparison.output, comparison=COMPARISONS),
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
    params: command=f"snakemake --cores 2 report --configfile {' '.join(map(os.path.relpath, workflow.configfiles))}",
    log: PATHS.log("report")
    resources: mem_mb=growing(2000), runtime=growing(10)
    shell: f"python -m dpdm report {PATHS.root} --command {{params.command:q}} > {{log}} 2>&1"
