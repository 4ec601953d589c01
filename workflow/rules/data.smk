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


# The feature extractor of the image distance: trained on real images, an instrument of evaluation alone.
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


# Before any job: the whole study, methods and their params included, and study.json, by which every job knows its recipe.
# It is no file of the DAG, since its time would make everything anew; what a job needs of it is among its params. And no
# rule can stand before training: where one must run, Snakemake does not ask the jobs behind its `ancient` output whether
# their own params changed, so an edited recipe would be validated, not trained, and its old scores be reported.
onstart:
    command = [sys.executable, "-m", "dpdm", "validate", "-"]
    if subprocess.run(command, input=STUDY_SPEC, text=True).returncode:
        raise WorkflowError("the study was refused for the reason above; nothing was run")
