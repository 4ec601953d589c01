rule collect:
    message: "collect all scores and audits"
    input:
        study=STUDY_JSON,
        scores=[path for name in SCORES for path in set_paths(f"{SET}/{name}", RUNS)],
        classifiers=run_paths(rules.score_classifier.output[0], classifier_runs()),
        anchors=[path for name in SCORES for path in anchor_paths(f"{ANCHOR}/seed{{seed}}/{name}")],
        audits=rules.audits.input,
        attacks=rules.attacks.input if STUDY.attacks else [],
    output:
        metrics=f"{ROOT}/metrics.csv",
        audits=f"{ROOT}/audits.csv",
    # Folders, not thousands of paths: a command line has an end. `collect` reads what belongs to the study.
    params: folders=[f"{ROOT}/{folder}" for folder in ("runs", "anchors", "audits", *["attacks"] * STUDY.attacks)]
    log: f"{ROOT}/collect.log"
    resources: mem_mb=growing(2000), runtime=growing(30)
    shell:
        "python -m dpdm collect {params.folders} --study {input.study} --metrics {output.metrics}"
        " --audits {output.audits} > {log} 2>&1"


rule tables:
    message: "tables"
    input:
        metrics=rules.collect.output.metrics,
        audits=rules.collect.output.audits,
    output:
        multiext(f"{ROOT}/tables/results", ".csv", ".md", ".tex"),
        multiext(f"{ROOT}/tables/audit", ".csv", ".md", ".tex"),
        results=report(f"{ROOT}/tables/results.html", caption="../report/results.rst", category="Results"),
        audit=report(f"{ROOT}/tables/audit.html", caption="../report/audit.rst", category="Privacy"),
    params:
        results=subpath(output.results, strip_suffix=".html"),
        audit=subpath(output.audit, strip_suffix=".html"),
    log: f"{ROOT}/tables/tables.log"
    resources: mem_mb=growing(2000), runtime=growing(10)
    shell:
        "python -m dpdm tables --metrics {input.metrics} --audits {input.audits} --results {params.results}"
        " --audit {params.audit} > {log} 2>&1"


rule figure:
    message: "figures for {wildcards.dataset}"
    input:
        metrics=rules.collect.output.metrics,
        real=rules.prepare.output.train,
        sets=lambda w: list(shown_sets(w).values()),
    output:
        multiext(f"{FIGURES}/{{dataset}}_curves", ".pdf", ".png"),
        multiext(f"{FIGURES}/{{dataset}}_samples", ".pdf", ".svg"),
        curves=report(f"{FIGURES}/{{dataset}}_curves.svg", caption="../report/curves.rst", category="Results"),
        grid=report(f"{FIGURES}/{{dataset}}_samples.png", caption="../report/samples.rst", category="Samples"),
    params:
        curves=subpath(output.curves, strip_suffix=".svg"),
        grid=subpath(output.grid, strip_suffix=".png"),
        samples=lambda w: [f"{name}={path}" for name, path in shown_sets(w).items()],
    log: f"{FIGURES}/{{dataset}}.log"
    resources: mem_mb=growing(2000), runtime=growing(30)
    shell:
        "python -m dpdm figures {params.samples} --dataset {wildcards.dataset} --metrics {input.metrics}"
        " --real {input.real} --curves {params.curves} --grid {params.grid} > {log} 2>&1"


rule comparison:
    message: "figure of the whole study: {wildcards.comparison}"
    input:
        study=STUDY_JSON,
        metrics=rules.collect.output.metrics,
    output:
        multiext(f"{FIGURES}/{{comparison}}", ".pdf", ".png"),
        svg=report(f"{FIGURES}/{{comparison}}.svg", caption="../report/comparison.rst", category="Results"),
    params: out=subpath(output.svg, strip_suffix=".svg")
    log: f"{FIGURES}/{{comparison}}.log"
    resources: mem_mb=growing(2000), runtime=growing(10)
    shell:
        "python -m dpdm comparison --kind {wildcards.comparison} --study {input.study} --metrics {input.metrics}"
        " --out {params.out} > {log} 2>&1"


rule figures:
    input:
        expand(rules.figure.output, dataset=STUDY.datasets),
        expand(rules.comparison.output, comparison=COMPARISONS),
    localrule: True


rule report:
    message: "report"
    input:
        rules.figures.input,
        study=STUDY_JSON,
        metrics=rules.collect.output.metrics,
        audits=rules.collect.output.audits,
        published=f"{PUBLISHED}/published.csv",
        privacy_status=f"{PUBLISHED}/privacy_status.csv",
    output: report(f"{ROOT}/report.html", caption="../report/report.rst", category="Report")
    params:
        curves=report_figures("curves.svg"),
        grids=report_figures("samples.png"),
        comparisons=[f"{name}={FIGURES}/{name}.svg" for name in COMPARISONS],
        # Patterns, filled in for every run.
        runs=lambda _: RUN,
        anchors=lambda _: f"{ANCHOR}/seed{{seed}}",
        data=lambda _: DATA,
        benchmarks=BENCHMARKS,
        command=f"snakemake --cores 2 report --configfile {' '.join(map(os.path.relpath, workflow.configfiles))}",
    log: f"{ROOT}/report.log"
    resources: mem_mb=growing(2000), runtime=growing(10)
    shell:
        "python -m dpdm report --study {input.study} --metrics {input.metrics} --audits {input.audits}"
        " --benchmarks {params.benchmarks} --curves {params.curves} --grids {params.grids}"
        " --comparisons {params.comparisons}"
        " --runs {params.runs:q} --anchors {params.anchors:q} --data {params.data:q}"
        " --published {input.published:q} --privacy-status {input.privacy_status:q}"
        " --command {params.command:q} --out {output} > {log} 2>&1"
