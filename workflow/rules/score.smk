# What Inception says of the real images, once per data set; scores need it where the study asks for `evaluation.fid`.
rule reference:
    message: "Inception statistics of {wildcards.dataset}"
    input:
        train=rules.prepare.output.train,
        test=rules.prepare.output.test,
    output: f"{DATA}/inception.npz"
    params: spec=schema.spec_json(STUDY.evaluation.fid or schema.FidSpec())
    log: f"{DATA}/inception.log"
    benchmark: f"{BENCHMARKS}/reference/{{dataset}}.tsv"
    resources: gpu=1, mem_mb=growing(16000), runtime=growing(240)  # 162,770 x 2048 features, and float64 copies of them
    shell:
        "python -m dpdm reference --spec {params.spec:q} --train {input.train} --test {input.test} --out {output}"
        " --threads {threads} > {log} 2>&1"


# One job per synthetic set computes distances and accuracies: each job pays the import of torch.
rule score:
    message: "score {wildcards.method} on {wildcards.dataset}, epsilon {wildcards.epsilon}, seed {wildcards.seed}, sampler {wildcards.sampler}"
    input:
        synthetic=rules.sample.output,
        train=rules.prepare.output.train,
        test=rules.prepare.output.test,
        extractor=rules.extractor.output,
        inception=rules.reference.output if STUDY.evaluation.fid else [],
    output:
        fidelity=f"{SET}/fidelity.json",
        utility=f"{SET}/utility.json",
    params: spec=lambda w: schema.spec_json(STUDY.score(run_of(w).coordinates(w.sampler)))
    log: f"{SET}/score.log"
    benchmark: f"{BENCHMARKS}/score/{{dataset}}-{{method}}-{{epsilon}}-{{seed}}-{{sampler}}.tsv"
    resources:
        gpu=1 if STUDY.evaluation.fid else 0,  # of all that is computed here, only Inception is worth one
        # With FID: 162,770 x 2048 features and float64 copies of them.
        mem_mb=growing(16000 if STUDY.evaluation.fid else 4000),
        runtime=growing(240 if STUDY.evaluation.fid else 120),
    shell:
        "python -m dpdm score --spec {params.spec:q} --synthetic {input.synthetic} --train {input.train}"
        " --test {input.test} --extractor {input.extractor} --fidelity {output.fidelity}"
        " --utility {output.utility} --inception {input.inception} --threads {threads} > {log} 2>&1"


# The ceiling (real images as if they were synthetic) and the floor (noise), judged like any method.
use rule score as score_anchor with:
    message: "score anchor {wildcards.anchor} on {wildcards.dataset}, seed {wildcards.seed}"
    input:
        synthetic=lambda w: rules.prepare.output.train if w.anchor == "real" else rules.label_only.output,
        train=rules.prepare.output.train,
        test=rules.prepare.output.test,
        extractor=rules.extractor.output,
        inception=rules.reference.output if STUDY.evaluation.fid else [],
    output:
        fidelity=f"{ANCHOR}/seed{{seed}}/fidelity.json",
        utility=f"{ANCHOR}/seed{{seed}}/utility.json",
    params:
        spec=lambda w: schema.spec_json(
            STUDY.score(schema.Coordinates(study=STUDY.study, dataset=w.dataset, method=w.anchor, epsilon=None, seed=int(w.seed)))
        ),
    log: f"{ANCHOR}/seed{{seed}}/score.log"
    benchmark: f"{BENCHMARKS}/score_anchor/{{dataset}}-{{anchor}}-{{seed}}.tsv"


# A method of `kind: classifier` draws no images: its model itself meets the test images.
rule score_classifier:
    message: "score classifier {wildcards.method} on {wildcards.dataset}, epsilon {wildcards.epsilon}, seed {wildcards.seed}"
    input:
        model=rules.train.output.model,
        test=rules.prepare.output.test,
    output: f"{RUN}/utility.json"
    params: spec=lambda w: schema.spec_json(STUDY.score_classifier(run_of(w)))
    log: f"{RUN}/score.log"
    benchmark: f"{BENCHMARKS}/score_classifier/{{dataset}}-{{method}}-{{epsilon}}-{{seed}}.tsv"
    resources: mem_mb=growing(2000), runtime=growing(30)
    shell:
        "python -m dpdm score_classifier --spec {params.spec:q} --model {input.model} --test {input.test}"
        " --utility {output} --threads {threads} > {log} 2>&1"
