rule collect:
    message: "collect all scores and audits"
    input:
        study=STUDY_JSON,
        scores=set_paths(f"{SET}/fidelity.json", RUNS) + set_paths(f"{SET}/utility.json", RUNS),
        classifiers=run_paths(rules.score_classifier.output[0], classifier_runs()),
        anchors=anchor_paths(rules.score_anchor.output.fidelity) + anchor_paths(rules.score_anchor.output.utility),
        audits=rules.audits.input,
    output:
        metrics=f"{ROOT}/metrics.csv",
        audits=f"{ROOT}/audits.csv",
    # Folders, not thousands of paths: a command line has an end. `collect` reads what belongs to the study.
    params: folders=[f"{ROOT}/{folder}" for folder in ("runs", "anchors", "audits")]
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
        sets=lambda w: [path for _, path in shown_sets(w)],
    output:
        multiext(f"{ROOT}/figures/{{dataset}}_curves", ".pdf", ".png"),
        f"{ROOT}/figures/{{dataset}}_samples.pdf",
        curves=report(f"{ROOT}/figures/{{dataset}}_curves.svg", caption="../report/curves.rst", category="Results"),
        grid=report(f"{ROOT}/figures/{{dataset}}_samples.png", caption="../report/samples.rst", category="Samples"),
    params:
        curves=subpath(output.curves, strip_suffix=".svg"),
        grid=subpath(output.grid, strip_suffix=".png"),
        samples=lambda w: [f"{r.method},{schema.epsilon_text(r.epsilon)},{r.seed}={p}" for r, p in shown_sets(w)],
    log: f"{ROOT}/figures/{{dataset}}.log"
    resources: mem_mb=growing(2000), runtime=growing(10)
    shell:
        "python -m dpdm figures {params.samples} --dataset {wildcards.dataset} --metrics {input.metrics}"
        " --real {input.real} --curves {params.curves} --grid {params.grid} > {log} 2>&1"


rule figures:
    input: expand(rules.figure.output, dataset=STUDY.datasets)
    localrule: True


rule report:
    message: "report"
    input:
        study=STUDY_JSON,
        metrics=rules.collect.output.metrics,
        audits=rules.collect.output.audits,
        curves=expand(rules.figure.output.curves, dataset=STUDY.datasets),
        grids=expand(rules.figure.output.grid, dataset=STUDY.datasets),
        published=f"{PUBLISHED}/published.csv",
        privacy_status=f"{PUBLISHED}/privacy_status.csv",
    output: report(f"{ROOT}/report.html", caption="../report/report.rst", category="Report")
    params:
        curves=[f"{d}={p}" for d, p in zip(STUDY.datasets, expand(rules.figure.output.curves, dataset=STUDY.datasets))],
        grids=[f"{d}={p}" for d, p in zip(STUDY.datasets, expand(rules.figure.output.grid, dataset=STUDY.datasets))],
        benchmarks=BENCHMARKS,
        command=f"snakemake --cores 2 report --configfile {' '.join(map(os.path.relpath, workflow.configfiles))}",
    log: f"{ROOT}/report.log"
    resources: mem_mb=growing(2000), runtime=growing(10)
    shell:
        "python -m dpdm report --study {input.study} --metrics {input.metrics} --audits {input.audits}"
        " --benchmarks {params.benchmarks} --curves {params.curves} --grids {params.grids}"
        " --published {input.published:q} --privacy-status {input.privacy_status:q}"
        " --command {params.command:q} --out {output} > {log} 2>&1"
