# Retrains exactly the runs whose spec changed. The study is no input (see `onstart`): an edit elsewhere in it
# retrains nothing. train has no test images and no score among its inputs.
rule train:
    message: "train {wildcards.method} on {wildcards.dataset}, epsilon {wildcards.epsilon}, seed {wildcards.seed}"
    input: data=rules.prepare.output.train
    output:
        model=f"{RUN}/model.pt",
        ledger=f"{RUN}/ledger.json",
        curve=f"{RUN}/train.jsonl",
    params:
        spec=lambda w: specs.spec_json(run_of(w)),
        # Not an output, so that Snakemake leaves it where a killed job's next attempt finds it.
        checkpoint=lambda w: f"{RUN}/checkpoint.pt".format(**w),
    log: f"{RUN}/train.log"
    benchmark: f"{BENCHMARKS}/train/{{dataset}}-{{method}}-{{epsilon}}-{{seed}}.tsv"
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
        "exec python -m dpdm train --spec {params.spec:q} --data {input.data} --model {output.model}"
        " --ledger {output.ledger} --curve {output.curve} --checkpoint {params.checkpoint}"
        " --checkpoint-interval {resources.checkpoint_interval} --threads {threads} --processes {resources.gpu}"
        " > {log} 2>&1"


rule audit:
    message: "audit {wildcards.method} on {wildcards.dataset}"
    input: lambda w: run_paths(f"{RUN}/ledger.json", [r for r in RUNS if (r.dataset, r.method) == (w.dataset, w.method)])
    output: audit=f"{ROOT}/audits/{{dataset}}/{{method}}.json"
    log: f"{ROOT}/audits/{{dataset}}/{{method}}.log"
    benchmark: f"{BENCHMARKS}/audit/{{dataset}}-{{method}}.tsv"
    resources: mem_mb=growing(2000), runtime=growing(30)
    shell: "python -m dpdm audit {input} --out {output.audit} --threads {threads} > {log} 2>&1"


rule audits:
    input: method_paths(rules.audit.output.audit)
    localrule: True


# What the private runs of a method did, attacked: one seed of each epsilon, as seeds share the mechanism. One job for
# all epsilons: importing costs as much as an attack. Part of a report where the study says `attacks: true`.
rule attack:
    message: "attack {wildcards.method} on {wildcards.dataset}"
    input: lambda w: run_paths(f"{RUN}/ledger.json", [r for r in ATTACKED if (r.dataset, r.method) == (w.dataset, w.method)])
    output: f"{ROOT}/attacks/{{dataset}}/{{method}}.json"
    log: f"{ROOT}/attacks/{{dataset}}/{{method}}.log"
    benchmark: f"{BENCHMARKS}/attack/{{dataset}}-{{method}}.tsv"
    resources: mem_mb=growing(2000), runtime=growing(60)
    shell: "python -m dpdm attack --ledgers {input} --out {output} --threads {threads} > {log} 2>&1"


rule attacks:
    input: list(dict.fromkeys(run_paths(rules.attack.output[0], ATTACKED)))
    localrule: True
