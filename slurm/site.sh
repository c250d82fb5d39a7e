# What differs between clusters. Edit once; every job script reads it.
# (sbatch options that Slurm itself must see, such as --account, go on the sbatch command line
#  or into the environment as SBATCH_ACCOUNT, SBATCH_PARTITION, ...)

# How a job gets its software: activate a virtual environment, load modules, or start a container.
site_setup() {
  # module load cuda
  source "${QA_TRAIN_VENV:-.venv}/bin/activate"
}

# Network interface of the ranks, if the default choice is wrong on your nodes.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
