rule sample:
    input:
        model=rules.train.output.model,
        dataset=rules.prepare.output.facts,
    output:
        PATHS.set(*SET, "synthetic.npz"),
    log:
        PATHS.set(*SET, "sample.log"),
    benchmark:
        PATHS.benchmark("sample", *SET)
    conda:
        "../envs/dpdm.yaml"
    # 60,000 images of 64x64x3 by 1,000 steps of Churn, and their archive: 3.4 hours of an H100 (calculated).
    resources:
        gpu=1,
        mem_mb=growing(5000),
        runtime=growing(480),
    params:
        spec=lambda w: specs.spec_json(STUDY.sample(run_of(w), w.sampler)),
    message:
        "sample {wildcards.method} on {wildcards.dataset}, epsilon {wildcards.epsilon}, seed {wildcards.seed}, sampler {wildcards.sampler}"
    shell:
        f"python -m dpdm sample {PATHS.root}"
        " {wildcards.dataset}/{wildcards.method}/{wildcards.epsilon}/{wildcards.seed}/{wildcards.sampler}"
        " --threads {threads} > {log} 2>&1"


rule label_only:
    input:
        rules.prepare.output.facts,
    output:
        PATHS.label_only("{dataset}"),
    log:
        PATHS.label_only("{dataset}", ".log"),
    conda:
        "../envs/dpdm.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        images=STUDY.evaluation.synthetic_images,
    message:
        "label-only floor for {wildcards.dataset}"
    shell:
        f"python -m dpdm data {PATHS.root} {{wildcards.dataset}} label_only.npz > {{log}} 2>&1"
