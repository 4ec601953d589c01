# What Inception says of the real images, once per data set; needed where the study asks for `evaluation.fid`.
rule reference:
    message: "Inception statistics of {wildcards.dataset}"
    input:
        train=rules.prepare.output.train,
        test=rules.prepare.output.test,
    output: f"{DATA}/inception.npz"
    params: spec=specs.spec_json(STUDY.fid())
    log: f"{DATA}/inception.log"
    benchmark: f"{BENCHMARKS}/reference/{{dataset}}.tsv"
    resources: gpu=1, mem_mb=growing(16000), runtime=growing(240)  # 162,770 x 2048 features, and float64 copies of them
    shell:
        "python -m dpdm reference --spec {params.spec:q} --train {input.train} --test {input.test} --out {output}"
        " --threads {threads} > {log} 2>&1"


# Where the study asks for `evaluation.fid`, and apart from `score`: that would hold the GPU while its classifiers train.
rule score_inception:
    message: "score {wildcards.method} by Inception on {wildcards.dataset}, epsilon {wildcards.epsilon}, seed {wildcards.seed}, sampler {wildcards.sampler}"
    input:
        synthetic=rules.sample.output,
        reference=rules.reference.output,
    output: f"{SET}/inception.json"
    params: spec=lambda w: specs.spec_json(STUDY.score_inception(run_of(w).coordinates(w.sampler)))
    log: f"{SET}/score_inception.log"
    benchmark: f"{BENCHMARKS}/score_inception/{{dataset}}-{{method}}-{{epsilon}}-{{seed}}-{{sampler}}.tsv"
    resources: gpu=1, mem_mb=growing(16000), runtime=growing(240)  # as `reference`: an anchor is as large
    shell:
        "python -m dpdm score_inception --spec {params.spec:q} --synthetic {input.synthetic}"
        " --reference {input.reference} --out {output} --threads {threads} > {log} 2>&1"


use rule score_inception as score_inception_anchor with:
    message: "score anchor {wildcards.anchor} by Inception on {wildcards.dataset}, seed {wildcards.seed}"
    input:
        synthetic=anchor_images,
        reference=rules.reference.output,
    output: f"{ANCHOR}/seed{{seed}}/inception.json"
    params: spec=lambda w: specs.spec_json(STUDY.score_inception(anchor_of(w)))
    log: f"{ANCHOR}/seed{{seed}}/score_inception.log"
    benchmark: f"{BENCHMARKS}/score_inception_anchor/{{dataset}}-{{anchor}}-{{seed}}.tsv"


# One job per synthetic set computes the other distances, and accuracies: each job pays the import of torch.
rule score:
    message: "score {wildcards.method} on {wildcards.dataset}, epsilon {wildcards.epsilon}, seed {wildcards.seed}, sampler {wildcards.sampler}"
    input:
        synthetic=rules.sample.output,
        train=rules.prepare.output.train,
        test=rules.prepare.output.test,
        extractor=rules.extractor.output,
    output:
        fidelity=f"{SET}/fidelity.json",
        utility=f"{SET}/utility.json",
    params: spec=lambda w: specs.spec_json(STUDY.score(run_of(w).coordinates(w.sampler)))
    log: f"{SET}/score.log"
    benchmark: f"{BENCHMARKS}/score/{{dataset}}-{{method}}-{{epsilon}}-{{seed}}-{{sampler}}.tsv"
    resources: mem_mb=growing(8000), runtime=growing(120)  # 162,770 images of 64x64x3, and as many of the anchor `real`
    shell:
        "python -m dpdm score --spec {params.spec:q} --synthetic {input.synthetic} --train {input.train}"
        " --test {input.test} --extractor {input.extractor} --fidelity {output.fidelity}"
        " --utility {output.utility} --threads {threads} > {log} 2>&1"


# The ceiling (real images as if they were synthetic) and the floor (noise), judged like any method.
use rule score as score_anchor with:
    message: "score anchor {wildcards.anchor} on {wildcards.dataset}, seed {wildcards.seed}"
    input:
        synthetic=anchor_images,
        train=rules.prepare.output.train,
        test=rules.prepare.output.test,
        extractor=rules.extractor.output,
    output:
        fidelity=f"{ANCHOR}/seed{{seed}}/fidelity.json",
        utility=f"{ANCHOR}/seed{{seed}}/utility.json",
    params: spec=lambda w: specs.spec_json(STUDY.score(anchor_of(w)))
    log: f"{ANCHOR}/seed{{seed}}/score.log"
    benchmark: f"{BENCHMARKS}/score_anchor/{{dataset}}-{{anchor}}-{{seed}}.tsv"


# A method of `kind: classifier` draws no images: its model itself meets the test images.
rule score_classifier:
    message: "score classifier {wildcards.method} on {wildcards.dataset}, epsilon {wildcards.epsilon}, seed {wildcards.seed}"
    input:
        model=rules.train.output.model,
        test=rules.prepare.output.test,
    output: f"{RUN}/utility.json"
    params: spec=lambda w: specs.spec_json(STUDY.score_classifier(run_of(w)))
    log: f"{RUN}/score.log"
    benchmark: f"{BENCHMARKS}/score_classifier/{{dataset}}-{{method}}-{{epsilon}}-{{seed}}.tsv"
    resources: mem_mb=growing(2000), runtime=growing(30)
    shell:
        "python -m dpdm score_classifier --spec {params.spec:q} --model {input.model} --test {input.test}"
        " --utility {output} --threads {threads} > {log} 2>&1"
