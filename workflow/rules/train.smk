# Retrains exactly the runs whose spec changed: an edit elsewhere in the study retrains nothing. train has no test images
# and no score among its inputs.
rule train:
    message: "train {wildcards.method} on {wildcards.dataset}, epsilon {wildcards.epsilon}, seed {wildcards.seed}"
    input: data=rules.prepare.output.train
    output:
        model=PATHS.run(*RUN, "model.pt"),
        ledger=PATHS.run(*RUN, "ledger.json"),
        curve=PATHS.run(*RUN, "train.jsonl"),
    params: spec=lambda w: specs.spec_json(run_of(w))
    log: PATHS.run(*RUN, "train.log")
    benchmark: PATHS.benchmark("train", *RUN)
    # GPUs and seconds between two checkpoints are resources, not parameters: a profile may set them, and changing
    # them trains nothing again. The time does not grow with the attempts: the next one goes on where this one was cut.
    resources:
        gpu=lambda w: STUDY.methods[w.method].gpus_per_run,
        mem_mb=growing(2000),
        runtime=240,
        checkpoint_interval=300,
    # exec: no shell stands between the scheduler and the training. One that died of the scheduler's SIGTERM would end
    # the job, and the training with it, before its checkpoint is written.
    shell:
        f"exec python -m dpdm train {PATHS.root} {{wildcards.dataset}}/{{wildcards.method}}/{{wildcards.epsilon}}/{{wildcards.seed}}"
        " --checkpoint-interval {resources.checkpoint_interval} --threads {threads} --processes {resources.gpu}"
        " > {log} 2>&1"


rule audit:
    message: "audit {wildcards.method} on {wildcards.dataset}"
    input: lambda w: run_files("ledger.json", runs_of(w))
    output: PATHS.audit("{dataset}", "{method}")
    log: PATHS.audit("{dataset}", "{method}", ".log")
    benchmark: PATHS.benchmark("audit", "{dataset}", "{method}")
    resources: mem_mb=growing(2000), runtime=growing(30)
    shell:
        f"python -m dpdm audit {PATHS.root} {{wildcards.dataset}}/{{wildcards.method}} --out {{output}} --threads {{threads}}"
        " > {log} 2>&1"


rule audits:
    input: once(PATHS.audit)
    localrule: True


# What the private runs of a method did, attacked: one seed of each epsilon, as seeds share the mechanism. One job for
# all epsilons: importing costs as much as an attack. Part of a report where the study says `attacks: true`.
rule attack:
    message: "attack {wildcards.method} on {wildcards.dataset}"
    input: lambda w: run_files("ledger.json", runs_of(w, ATTACKED))
    output: PATHS.attack("{dataset}", "{method}")
    log: PATHS.attack("{dataset}", "{method}", ".log")
    benchmark: PATHS.benchmark("attack", "{dataset}", "{method}")
    resources: mem_mb=growing(2000), runtime=growing(60)
    shell:
        f"python -m dpdm attack {PATHS.root} {{wildcards.dataset}}/{{wildcards.method}} --out {{output}} --threads {{threads}}"
        " > {log} 2>&1"


rule attacks:
    input: once(PATHS.attack, ATTACKED)
    localrule: True
