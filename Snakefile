# Many runs: which there are, what they build on, and nothing else; each rule makes one call of `mhvae`.
#
#   snakemake --cores 2 demo                               the four notebooks and their HTML report; also: smoke, paper
#   snakemake --cores 2 gallery                            notebooks 00 to 03 and 05 to 07 as a static site
#   snakemake --cores 2 table1                             every row of Table 1, then its notebook; --config preset=smoke
#   snakemake --cores 2 missing                            training with missing images, notebook 08
#   snakemake --cores 2 degradation                        which defects of synthetic images hurt segmentation, notebook 09
#   snakemake --cores 2 sweep --config table=sweep.csv     one run a row of a CSV or YAML file, then one tidy table
#
# A run is done when its results.json is there. Done runs are not repeated; failed and killed ones are, and a training
# goes on from its checkpoints. profiles/default says so to Snakemake. On SLURM: snakemake --profile profiles/slurm ...

import json
import os
import shlex
import sys

from mhvae_kit import degradation as study
from mhvae_kit.degradation.plan import find_key
from mhvae_kit.sweeps import read_sweep, sweep_name
from mhvae_kit.table1 import ROWS

RUNS = config.get("runs", "runs")
MHVAE = shlex.join([sys.executable, "-m", "mhvae_kit.cli"])
NOTEBOOKS = ["00_quickstart", "01_data_preparation", "02_staged_training", "03_evaluation"]
EXPLORING = ["05_product_of_experts", "06_latent_levels", "07_temperature"]


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


# Notebooks that need nothing but the shipped models.
rule exploring:
    output:
        f"{RUNS}/{{preset}}-{{name}}/results.json",
    wildcard_constraints:
        name="|".join(EXPLORING),
    shell:
        "{MHVAE} run {wildcards.name} -p preset={wildcards.preset} --root {RUNS} --run-id {wildcards.preset}-{wildcards.name}"


# What has been run besides, such as 04_table1, is in the gallery too.
rule gallery_site:
    input:
        [f"{RUNS}/{{preset}}-{name}/results.json" for name in NOTEBOOKS + EXPLORING],
    output:
        f"{RUNS}/gallery-{{preset}}/index.html",
    params:
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "{MHVAE} gallery --preset {wildcards.preset} --root {RUNS} --output {params.folder:q}"


rule gallery:
    input:
        f"{RUNS}/gallery-{config.get('preset', 'demo')}/index.html",


# Table 1: one rule for the rows, one run a row. Rows run side by side; small ones take a core, large ones a share of
# many, for two trainings on a core each are done sooner than one after the other on both. On one GPU, so that rows
# do not crowd it: --resources gpu=1.
SMALL_ROWS = ["pix2pix", "references"]
# What another row waits for, then the one that takes longest, so that no core is left with it at the end.
FIRST = {"mhvae-gan": 2, "flow": 1}


def row_results(row, preset="{preset}"):
    return f"{RUNS}/{preset}-table1-{row}/results.json"


def needed_by(row):
    """What a row waits for; ancient, as a finished row stays as it is."""
    return ancient(row_results(ROWS[row].after)) if ROWS[row].after else []


for ROW in ROWS:

    rule:
        name:
            f"table1_{ROW.replace('-', '_')}"
        input:
            needed_by(ROW),
        output:
            row_results(ROW),
        params:
            row=ROW,
        priority: FIRST.get(ROW, 0)
        threads: 1 if ROW in SMALL_ROWS else max(1, (workflow.cores or 1) // 4)
        resources:
            gpu=1,
        shell:
            "{MHVAE} table1 {params.row} --preset {wildcards.preset} --root {RUNS}"


rule table1_notebook:
    input:
        [row_results(row) for row in ROWS],
    output:
        f"{RUNS}/{{preset}}-04_table1/results.json",
    params:
        rows_root=os.path.abspath(RUNS),
    threads: workflow.cores
    shell:
        "{MHVAE} run 04_table1 -p preset={wildcards.preset} -p rows_root={params.rows_root:q} --root {RUNS}"
        " --run-id {wildcards.preset}-04_table1"


rule table1_report:
    input:
        rules.table1_notebook.output,
    output:
        f"{RUNS}/table1-{{preset}}/index.html",
    params:
        run=lambda wildcards, input: os.path.dirname(input[0]),
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "{MHVAE} report {params.run:q} --output {params.folder:q}"


rule table1:
    input:
        f"{RUNS}/table1-{config.get('preset', 'demo')}/index.html",


# Trains a model of its own, so it runs alone.
rule missing_modalities:
    input:
        ancient(rules.data_preparation.output),
    output:
        f"{RUNS}/{{preset}}-08_missing_modalities/results.json",
    threads: workflow.cores
    shell:
        "{MHVAE} run 08_missing_modalities -p preset={wildcards.preset} --root {RUNS}"
        " --run-id {wildcards.preset}-08_missing_modalities"


rule missing_report:
    input:
        rules.missing_modalities.output,
    output:
        f"{RUNS}/missing-{{preset}}/index.html",
    params:
        run=lambda wildcards, input: os.path.dirname(input[0]),
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "{MHVAE} report {params.run:q} --output {params.folder:q}"


rule missing:
    input:
        f"{RUNS}/missing-{config.get('preset', 'demo')}/index.html",


# The degradation study: a cell is one set of training images with its networks; each is one call with a results file.
# --config only=blur,rigid takes some of its conditions.
DEGRADATION = study.plan(config.get("preset", "demo"), config.get("only"))


def cell_of(wildcards):
    return find_key(wildcards.preset, wildcards.key)


def needed_by_cell(wildcards):
    """The plan, and the model that makes a cell's images; ancient, as what was trained stays as it is."""
    preset = wildcards.preset
    needs = cell_of(wildcards).needs
    found = [f"{RUNS}/{preset}-degradation-plan.txt"]
    if needs == "training":
        found.append(f"{RUNS}/{preset}-degradation-training/results.json")
    elif needs:
        found.append(row_results(needs, preset))
    return [ancient(path) for path in found]


rule degradation_plan:
    output:
        f"{RUNS}/{{preset}}-degradation-plan.txt",
    shell:
        "{MHVAE} degradation-plan --preset {wildcards.preset} --cores {workflow.cores} | tee {output:q}"


rule degradation_training:
    output:
        f"{RUNS}/{{preset}}-degradation-training/results.json",
    priority: 1
    threads: max(1, (workflow.cores or 1) // 2)
    resources:
        gpu=1,
    shell:
        "{MHVAE} degradation-training --preset {wildcards.preset} --root {RUNS}"


rule degradation_cell:
    input:
        needed_by_cell,
    output:
        f"{RUNS}/{{preset}}-degradation-{{key}}/results.json",
    wildcard_constraints:
        key="(?!training|plan).+",
    params:
        name=lambda wildcards: cell_of(wildcards).name,
        dose=lambda wildcards: "" if cell_of(wildcards).dose is None else f"--dose {cell_of(wildcards).dose}",
    threads: 1
    resources:
        gpu=1,
    shell:
        "{MHVAE} degradation-cell {params.name} {params.dose} --preset {wildcards.preset} --root {RUNS}"


rule degradation_notebook:
    input:
        [f"{RUNS}/{{preset}}-degradation-{cell.key}/results.json" for cell in DEGRADATION],
    output:
        f"{RUNS}/{{preset}}-09_degradation_study/results.json",
    params:
        cells_root=os.path.abspath(RUNS),
        only=config.get("only", ""),
    threads: workflow.cores
    shell:
        "{MHVAE} run 09_degradation_study -p preset={wildcards.preset} -p cells_root={params.cells_root:q}"
        " -p only={params.only:q} --root {RUNS} --run-id {wildcards.preset}-09_degradation_study"


rule degradation_report:
    input:
        rules.degradation_notebook.output,
    output:
        f"{RUNS}/degradation-{{preset}}/index.html",
    params:
        run=lambda wildcards, input: os.path.dirname(input[0]),
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "{MHVAE} report {params.run:q} --output {params.folder:q}"


rule degradation:
    input:
        f"{RUNS}/degradation-{config.get('preset', 'demo')}/index.html",


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
