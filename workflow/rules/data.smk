rule prepare:
    input:
        lambda w: STUDY.datasets[w.dataset].files(),
    output:
        train=PATHS.data("{dataset}", "train.npz"),
        test=PATHS.data("{dataset}", "test.npz"),
        facts=PATHS.data("{dataset}", "dataset.json"),
    log:
        PATHS.data("{dataset}", "prepare.log"),
    benchmark:
        PATHS.benchmark("prepare", "{dataset}")
    conda:
        "../envs/dpdm.yaml"
    resources:
        mem_mb=growing(5000),
        runtime=growing(60),  # 162,770 images of 64x64x3, and their archive
    params:
        spec=lambda w: specs.spec_json(STUDY.datasets[w.dataset].source_spec()),
    message:
        "prepare {wildcards.dataset}"
    shell:
        f"python -m dpdm data {PATHS.root} {{wildcards.dataset}} dataset.json > {{log}} 2>&1"


# The feature extractor of the image distance. It is trained on real images, and only evaluation uses it.
rule extractor:
    input:
        train=rules.prepare.output.train,
        test=rules.prepare.output.test,
    output:
        PATHS.data("{dataset}", "extractor.pt"),
    log:
        PATHS.data("{dataset}", "extractor.log"),
    benchmark:
        PATHS.benchmark("extractor", "{dataset}")
    conda:
        "../envs/dpdm.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    message:
        "feature extractor for {wildcards.dataset}"
    shell:
        f"python -m dpdm data {PATHS.root} {{wildcards.dataset}} extractor.pt --threads {{threads}} > {{log}} 2>&1"


# The statistics of the real images that scores need, once per data set and extractor.
rule real_features:
    input:
        train=rules.prepare.output.train,
        test=rules.prepare.output.test,
        network=lambda w: trained_extractor(w, [w.extractor]),
    output:
        PATHS.data("{dataset}", "{extractor}.npz"),
    log:
        PATHS.data("{dataset}", "{extractor}.log"),
    benchmark:
        PATHS.benchmark("real_features", "{dataset}", "{extractor}")
    conda:
        "../envs/dpdm.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    message:
        "{wildcards.extractor} statistics of {wildcards.dataset}"
    shell:
        f"python -m dpdm data {PATHS.root} {{wildcards.dataset}} {{wildcards.extractor}}.npz --threads {{threads}} > {{log}} 2>&1"
