rule prepare:
    message: "prepare {wildcards.dataset}"
    input: lambda w: STUDY.datasets[w.dataset].files()
    output:
        train=f"{DATA}/train.npz",
        test=f"{DATA}/test.npz",
        facts=f"{DATA}/dataset.json",
    params:
        spec=lambda w: specs.spec_json(STUDY.datasets[w.dataset].source_spec()),
        folder=subpath(output.facts, parent=True),
    log: f"{DATA}/prepare.log"
    benchmark: f"{BENCHMARKS}/prepare/{{dataset}}.tsv"
    resources: mem_mb=growing(5000), runtime=growing(60)  # 162,770 images of 64x64x3, and the archive they go into
    shell: "python -m dpdm prepare --spec {params.spec:q} --out {params.folder} > {log} 2>&1"


# The feature extractor of the image distance: trained on real images, an instrument of evaluation alone.
rule extractor:
    message: "feature extractor for {wildcards.dataset}"
    input:
        train=rules.prepare.output.train,
        test=rules.prepare.output.test,
    output: f"{DATA}/extractor.pt"
    log: f"{DATA}/extractor.log"
    benchmark: f"{BENCHMARKS}/extractor/{{dataset}}.tsv"
    resources: mem_mb=growing(2000), runtime=growing(30)
    shell:
        "python -m dpdm extractor --train {input.train} --test {input.test} --out {output} --threads {threads}"
        " > {log} 2>&1"


rule validate:
    message: "validate the study"
    output: STUDY_JSON
    params: spec=STUDY_SPEC
    log: f"{ROOT}/validate.log"
    benchmark: f"{BENCHMARKS}/validate.tsv"
    resources: mem_mb=growing(2000), runtime=growing(10)
    shell: "python -m dpdm validate --spec {params.spec:q} --out {output} > {log} 2>&1"


# Before any job: the whole study, methods and their params included. No rule can stand before training for this:
# where one must run, Snakemake does not ask the jobs behind its `ancient` output whether their own params changed,
# so an edited recipe would be validated, not trained, and its old scores be reported.
onstart:
    try:
        shell("python -m dpdm validate --spec {STUDY_SPEC:q} --published {PUBLISHED:q}/published.csv")
    except subprocess.CalledProcessError:
        raise WorkflowError("the study was refused for the reason above; nothing was run") from None
