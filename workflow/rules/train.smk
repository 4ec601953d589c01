# Retrains exactly the runs whose spec changed; an edit elsewhere in the study retrains nothing. No test image and no
# score is an input of train.
rule train:
    input:
        data=rules.prepare.output.train,
    output:
        model=PATHS.run(*RUN, "model.pt"),
        ledger=PATHS.run(*RUN, "ledger.json"),
        curve=PATHS.run(*RUN, "train.jsonl"),
    log:
        PATHS.run(*RUN, "train.log"),
    benchmark:
        PATHS.benchmark("train", *RUN)
    conda:
        "../envs/dpdm.yaml"
    # GPUs and seconds between two checkpoints are resources, not params: a profile can set them, and a change retrains
    # nothing. The time does not grow with the attempts, since the next attempt resumes this one.
    resources:
        gpu=lambda w: STUDY.methods[w.method].gpus_per_run,
        mem_mb=growing(2000),
        runtime=240,
        checkpoint_interval=300,
    params:
        spec=lambda w: specs.spec_json(run_of(w)),
    message:
        "train {wildcards.method} on {wildcards.dataset}, epsilon {wildcards.epsilon}, seed {wildcards.seed}"
    # exec replaces the shell by the training. Otherwise the scheduler's SIGTERM would kill the shell, which ends the
    # job and the training before the checkpoint is written.
    shell:
        f"exec python -m dpdm train {PATHS.root} {{wildcards.dataset}}/{{wildcards.method}}/{{wildcards.epsilon}}/{{wildcards.seed}}"
        " --checkpoint-interval {resources.checkpoint_interval} --threads {threads} --processes {resources.gpu}"
        " > {log} 2>&1"


rule audit:
    input:
        lambda w: run_files("ledger.json", runs_of(w)),
    output:
        PATHS.audit("{dataset}", "{method}"),
    log:
        PATHS.audit("{dataset}", "{method}", ".log"),
    benchmark:
        PATHS.benchmark("audit", "{dataset}", "{method}")
    conda:
        "../envs/dpdm.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    message:
        "audit {wildcards.method} on {wildcards.dataset}"
    shell:
        f"python -m dpdm audit {PATHS.root} {{wildcards.dataset}}/{{wildcards.method}} --out {{output}} --threads {{threads}}"
        " > {log} 2>&1"


rule audits:
    input:
        once(PATHS.audit),
    localrule: True


# Attacks the mechanisms of a method's private runs: one seed of each epsilon, since seeds share the mechanism. One job
# attacks all epsilons, since importing takes as long as an attack. Part of the report if the study says
# `attacks: true`.
rule attack:
    input:
        lambda w: run_files("ledger.json", runs_of(w, ATTACKED)),
    output:
        PATHS.attack("{dataset}", "{method}"),
    log:
        PATHS.attack("{dataset}", "{method}", ".log"),
    benchmark:
        PATHS.benchmark("attack", "{dataset}", "{method}")
    conda:
        "../envs/dpdm.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
    message:
        "attack {wildcards.method} on {wildcards.dataset}"
    shell:
        f"python -m dpdm attack {PATHS.root} {{wildcards.dataset}}/{{wildcards.method}} --out {{output}} --threads {{threads}}"
        " > {log} 2>&1"


rule attacks:
    input:
        once(PATHS.attack, ATTACKED),
    localrule: True
