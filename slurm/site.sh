# What differs between clusters. Edit once; every job script reads it.
# (sbatch options that Slurm itself must see, such as --account, go on the sbatch command line
#  or into the environment as SBATCH_ACCOUNT, SBATCH_PARTITION, ...)

# How a job gets its software: load modules, activate a virtual environment (on a file system that
# every node sees). Runs once, on the first node; the other nodes get its environment variables.
site_setup() {
  # module load cuda
  source "${QA_TRAIN_VENV:-.venv}/bin/activate"
}

# Put in front of the training command on every node.
site_container=()
# site_container=(apptainer exec --nv --bind "$PWD" /images/qa-train.sif)

# Network interface of the ranks, if the default choice is wrong on your nodes.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
