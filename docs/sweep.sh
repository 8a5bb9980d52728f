#!/usr/bin/env bash
#SBATCH --job-name=sweep
#SBATCH --array=0-1
#SBATCH --cpus-per-task=4
#SBATCH --output=sweep-%A-%a.log
# One experiment of a sweep, in a clone of its own, sent to the git remote `origin` and the DVC remote. Run it in your
# clone; docs/experiments.md tells what it needs.
#
#   sbatch --array=0-1 docs/sweep.sh NAME 'PARAM=VALUE ...' 'PARAM=VALUE ...'     one experiment per argument, on Slurm
#   SLURM_ARRAY_TASK_ID=0 bash docs/sweep.sh NAME 'PARAM=VALUE ...' ...           the first one, on this machine
set -euo pipefail

name=$1-$SLURM_ARRAY_TASK_ID
experiments=("${@:2}")
read -ra params <<< "${experiments[SLURM_ARRAY_TASK_ID]}"
project=$PWD
origin=$(git remote get-url origin)
commit=$(git rev-parse HEAD)
ref=refs/exps/${commit:0:2}/${commit:2}/$name  # where DVC stores an experiment

if [ -d .venv ]; then source .venv/bin/activate; fi
if git ls-remote --exit-code "$origin" "$ref"; then
    echo "sweep: origin has an experiment $name; take another name, or run: dvc exp remove --git-remote origin $name" >&2
    exit 1
fi

# Array tasks share a disk, but DVC runs one experiment at a time per clone.
clone=$(mktemp -d "${TMPDIR:-/tmp}/$name.XXXXXX")
echo "sweep: $name runs in $clone"
git clone --quiet "$origin" "$clone"
cd "$clone"
git checkout --quiet --detach "$commit"
if [ -f "$project/.dvc/config.local" ]; then cp "$project/.dvc/config.local" .dvc/; fi

# --pull brings the outputs of unchanged stages from the DVC remote, and finished stages of other experiments.
dvc exp run --pull --name "$name" "${params[@]/#/--set-param=}"
dvc exp push --run-cache origin "$name"
# `dvc exp push` exits with 0, too, if another experiment has taken the name meanwhile.
if ! git ls-remote origin "$ref" | grep --quiet "^$(git rev-parse "$ref")"; then
    echo "sweep: $name was not pushed; it is in $clone" >&2
    exit 1
fi
rm -rf "$clone"
