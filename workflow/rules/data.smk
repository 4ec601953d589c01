rule prepare:
    message: "prepare {wildcards.dataset}"
    input: lambda w: STUDY.datasets[w.dataset].files()
    output:
        train=PATHS.data("{dataset}", "train.npz"),
        test=PATHS.data("{dataset}", "test.npz"),
        facts=PATHS.data("{dataset}", "dataset.json"),
    params: spec=lambda w: specs.spec_json(STUDY.datasets[w.dataset].source_spec())
    log: PATHS.data("{dataset}", "prepare.log")
    benchmark: PATHS.benchmark("prepare", "{dataset}")
    resources: mem_mb=growing(5000), runtime=growing(60)  # 162,770 images of 64x64x3, and the archive they go into
    shell: f"python -m dpdm prepare {PATHS.root} {{wildcards.dataset}} > {{log}} 2>&1"


# The feature extractor of the image distance. It is trained on real images, and only evaluation uses it.
rule extractor:
    message: "feature extractor for {wildcards.dataset}"
    input:
        train=rules.prepare.output.train,
        test=rules.prepare.output.test,
    output: PATHS.data("{dataset}", "extractor.pt")
    log: PATHS.data("{dataset}", "extractor.log")
    benchmark: PATHS.benchmark("extractor", "{dataset}")
    resources: mem_mb=growing(2000), runtime=growing(30)
    shell: f"python -m dpdm extractor {PATHS.root} {{wildcards.dataset}} --threads {{threads}} > {{log}} 2>&1"


# What scores need of the real images, once per data set and extractor.
rule real_features:
    message: "{wildcards.extractor} statistics of {wildcards.dataset}"
    input:
        train=rules.prepare.output.train,
        test=rules.prepare.output.test,
        network=lambda w: trained_extractor(w, [w.extractor]),
    output: PATHS.data("{dataset}", "{extractor}.npz")
    log: PATHS.data("{dataset}", "{extractor}.log")
    benchmark: PATHS.benchmark("real_features", "{dataset}", "{extractor}")
    resources: mem_mb=growing(4000), runtime=growing(60)
    shell:
        f"python -m dpdm reference {PATHS.root} {{wildcards.dataset}} --extractor {{wildcards.extractor}}"
        " --threads {threads} > {log} 2>&1"


# Before any job, validate the whole study with its methods and params, and write study.json, from which jobs read their
# recipes. study.json is no file of the DAG, since its time would rerun everything; each job has its part of it as
# params. A rule before training does not work: when it must run, Snakemake does not check whether the params of the
# jobs behind its `ancient` output changed. An edited recipe would be validated but not trained, and the report would
# show its old scores.
def write_study():
    again = {"-F", "--forceall", "-R", "--forcerun"} & set(sys.argv)
    command = [sys.executable, "-m", "dpdm", "validate", "-", *(["--again"] if again else [])]
    if subprocess.run(command, input=STUDY_SPEC, text=True).returncode:
        raise WorkflowError("the study was refused for the reason above; nothing was run")


onstart:
    write_study()


if not workflow.modifier.is_main_snakefile():  # Snakemake does not run the onstart of a module
    workflow._onstart = lambda log, outer=workflow._onstart: (write_study(), outer(log))
