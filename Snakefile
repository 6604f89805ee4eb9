# Many runs: which there are, what they build on, and nothing else; each rule makes one call of `mhvae`.
#
#   snakemake --cores 2 demo                               the four notebooks and their HTML report; also: smoke, paper
#   snakemake --cores 2 sweep --config table=sweep.csv     one run a row of a CSV or YAML file, then one tidy table
#
# A run is done when its results.json is there. Done runs are not repeated; failed and killed ones are, and a training
# goes on from its checkpoints. profiles/default says so to Snakemake. On a cluster: snakemake --profile <yours> ...

import json
import os
import shlex
import sys

from mhvae_kit.sweeps import read_sweep, sweep_name

RUNS = config.get("runs", "runs")
MHVAE = shlex.join([sys.executable, "-m", "mhvae_kit.cli"])
NOTEBOOKS = ["00_quickstart", "01_data_preparation", "02_staged_training", "03_evaluation"]


def arguments(parameters):
    """The -p options for a run of a sweep; values as JSON, which is how the runner reads lists and words."""
    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in parameters.items()}
    return " ".join(f"-p {shlex.quote(f'{name}={value}')}" for name, value in text.items())


wildcard_constraints:
    preset="smoke|demo|paper",


rule demo:
    input:
        f"{RUNS}/report-demo/index.html",


rule smoke:
    input:
        f"{RUNS}/report-smoke/index.html",


rule paper:
    input:
        f"{RUNS}/report-paper/index.html",


rule quickstart:
    output:
        f"{RUNS}/{{preset}}-00_quickstart/results.json",
    shell:
        "{MHVAE} run 00_quickstart -p preset={wildcards.preset} --root {RUNS} --run-id {wildcards.preset}-00_quickstart"


rule data_preparation:
    output:
        f"{RUNS}/{{preset}}-01_data_preparation/results.json",
    shell:
        "{MHVAE} run 01_data_preparation -p preset={wildcards.preset} --root {RUNS}"
        " --run-id {wildcards.preset}-01_data_preparation"


# Training takes all cores, so it runs alone; it waits for the data, not for what notebook 01 says of them.
rule staged_training:
    input:
        ancient(rules.data_preparation.output),
    output:
        f"{RUNS}/{{preset}}-02_staged_training/results.json",
    threads: workflow.cores
    shell:
        "{MHVAE} run 02_staged_training -p preset={wildcards.preset} --root {RUNS}"
        " --run-id {wildcards.preset}-02_staged_training"


rule evaluation:
    input:
        rules.staged_training.output,
    output:
        f"{RUNS}/{{preset}}-03_evaluation/results.json",
    params:
        train_run=lambda wildcards, input: os.path.abspath(os.path.dirname(input[0])),
    threads: workflow.cores
    shell:
        "{MHVAE} run 03_evaluation -p preset={wildcards.preset} -p train_run={params.train_run:q} --root {RUNS}"
        " --run-id {wildcards.preset}-03_evaluation"


rule report:
    input:
        [f"{RUNS}/{{preset}}-{name}/results.json" for name in NOTEBOOKS],
    output:
        f"{RUNS}/report-{{preset}}/index.html",
    params:
        runs=lambda wildcards, input: [os.path.dirname(path) for path in input],
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "{MHVAE} report {params.runs:q} --output {params.folder:q}"


if "table" in config:
    SWEEP = {run.run_id: run for run in read_sweep(config["table"])}

    rule sweep_run:
        output:
            f"{RUNS}/{{run_id}}/results.json",
        wildcard_constraints:
            run_id="sweep-[A-Za-z0-9_-]+",
        params:
            notebook=lambda wildcards: SWEEP[wildcards.run_id].notebook,
            given=lambda wildcards: arguments(SWEEP[wildcards.run_id].parameters),
        threads: int(config.get("threads", workflow.cores))
        shell:
            "{MHVAE} run {params.notebook} {params.given} --root {RUNS} --run-id {wildcards.run_id}"

    rule sweep:
        input:
            table=config["table"],
            runs=expand(f"{RUNS}/{{run_id}}/results.json", run_id=list(SWEEP)),
        output:
            f"{RUNS}/sweep-{sweep_name(config['table'])}.csv",
        shell:
            "{MHVAE} runs --root {RUNS} --sweep {input.table:q} --collect {output:q}"

else:

    rule sweep:
        shell:
            "echo 'a sweep needs its table: snakemake --cores 2 sweep --config table=sweep.csv' >&2; exit 2"
