# Inception's statistics of the real images, once per data set, if the study asks for `evaluation.fid`.
rule reference:
    input:
        train=rules.prepare.output.train,
        test=rules.prepare.output.test,
    output:
        PATHS.data("{dataset}", "inception.npz"),
    log:
        PATHS.data("{dataset}", "inception.log"),
    benchmark:
        PATHS.benchmark("reference", "{dataset}")
    conda:
        "../envs/dpdm.yaml"
    resources:
        gpu=1,
        mem_mb=growing(16000),
        runtime=growing(240),  # 162,770 x 2048 features, and float64 copies of them
    params:
        spec=specs.spec_json(STUDY.fid()),
    message:
        "Inception statistics of {wildcards.dataset}"
    shell:
        f"python -m dpdm data {PATHS.root} {{wildcards.dataset}} inception.npz --threads {{threads}} > {{log}} 2>&1"


# Runs if the study asks for `evaluation.fid`. It is not part of `score`, which would hold the GPU while classifiers
# train.
rule score_inception:
    input:
        synthetic=rules.sample.output,
        reference=rules.reference.output,
    output:
        PATHS.set(*SET, "inception.json"),
    log:
        PATHS.set(*SET, "score_inception.log"),
    benchmark:
        PATHS.benchmark("score_inception", *SET)
    conda:
        "../envs/dpdm.yaml"
    resources:
        gpu=1,
        mem_mb=growing(16000),
        runtime=growing(240),  # as `reference`: an anchor is as large
    params:
        spec=lambda w: specs.spec_json({"coordinates": run_of(w).coordinates(w.sampler), "fid": STUDY.fid()}),
        place=lambda w: "/".join(w),
    message:
        "score {wildcards.method} by Inception on {wildcards.dataset}, epsilon {wildcards.epsilon}, seed {wildcards.seed}, sampler {wildcards.sampler}"
    shell:
        f"python -m dpdm score {PATHS.root} {{params.place}} --inception --threads {{threads}} > {{log}} 2>&1"


use rule score_inception as score_inception_anchor with:
    input:
        synthetic=lambda w: PATHS.anchor_images(w.dataset, w.anchor),
        reference=rules.reference.output,
    output:
        PATHS.anchor(*ANCHOR, "inception.json"),
    log:
        PATHS.anchor(*ANCHOR, "score_inception.log"),
    benchmark:
        PATHS.benchmark("score_inception_anchor", *ANCHOR)
    params:
        spec=lambda w: specs.spec_json({"coordinates": anchor_of(w), "fid": STUDY.fid()}),
        place=lambda w: "/".join(w),
    message:
        "score anchor {wildcards.anchor} by Inception on {wildcards.dataset}, seed {wildcards.seed}"


# One job per synthetic set computes the other distances and the accuracies, since every job has to import torch.
rule score:
    input:
        synthetic=rules.sample.output,
        train=rules.prepare.output.train,
        test=rules.prepare.output.test,
        references=references,
        teacher=lambda w: PATHS.run(*run_of(w).place, "model.pt") if run_of(w).params.get("teacher") else [],
    output:
        fidelity=PATHS.set(*SET, "fidelity.json"),
        nearest=PATHS.set(*SET, "nearest.png"),
        utility=PATHS.set(*SET, "utility.json"),
    log:
        PATHS.set(*SET, "score.log"),
    benchmark:
        PATHS.benchmark("score", *SET)
    conda:
        "../envs/dpdm.yaml"
    resources:
        mem_mb=growing(8000),
        runtime=growing(120),  # 162,770 images of 64x64x3, and as many of the anchor `real`
    params:
        spec=lambda w: specs.spec_json(STUDY.scoring(run_of(w).coordinates(w.sampler))),
        place=lambda w: "/".join(w),
    message:
        "score {wildcards.method} on {wildcards.dataset}, epsilon {wildcards.epsilon}, seed {wildcards.seed}, sampler {wildcards.sampler}"
    shell:
        f"python -m dpdm score {PATHS.root} {{params.place}} --threads {{threads}} > {{log}} 2>&1"


# The ceiling (real images as if they were synthetic) and the floor (noise), scored like any method.
use rule score as score_anchor with:
    input:
        synthetic=lambda w: PATHS.anchor_images(w.dataset, w.anchor),
        train=rules.prepare.output.train,
        test=rules.prepare.output.test,
        references=references,
        teacher=[],
    output:
        fidelity=PATHS.anchor(*ANCHOR, "fidelity.json"),
        nearest=PATHS.anchor(*ANCHOR, "nearest.png"),
        utility=PATHS.anchor(*ANCHOR, "utility.json"),
    log:
        PATHS.anchor(*ANCHOR, "score.log"),
    benchmark:
        PATHS.benchmark("score_anchor", *ANCHOR)
    params:
        spec=lambda w: specs.spec_json(STUDY.scoring(anchor_of(w))),
        place=lambda w: "/".join(w),
    message:
        "score anchor {wildcards.anchor} on {wildcards.dataset}, seed {wildcards.seed}"


# A method of `kind: classifier` draws no images: its model classifies the test images.
rule score_classifier:
    input:
        model=rules.train.output.model,
        test=rules.prepare.output.test,
    output:
        PATHS.run(*RUN, "utility.json"),
    log:
        PATHS.run(*RUN, "score.log"),
    benchmark:
        PATHS.benchmark("score_classifier", *RUN)
    conda:
        "../envs/dpdm.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        spec=lambda w: specs.spec_json({"coordinates": run_of(w).coordinates(), "impl": STUDY.methods[w.method].impl}),
    message:
        "score classifier {wildcards.method} on {wildcards.dataset}, epsilon {wildcards.epsilon}, seed {wildcards.seed}"
    shell:
        f"python -m dpdm score {PATHS.root} {{wildcards.dataset}}/{{wildcards.method}}/{{wildcards.epsilon}}/{{wildcards.seed}}"
        " --threads {threads} > {log} 2>&1"
