"""A process's place by its environment, with the variables that SLURM, Open MPI and Kubernetes set."""

import pytest

from weathermixer.parallel.joining import Place, check_devices, find_place, first_host, tasks_per_node

ALONE = Place("node1:1234", 1, 0)
GIVEN = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}

# what sbatch and salloc say of a job, and what srun adds for a step's task
SLURM_JOB = {
    "SLURM_JOB_ID": "4097",
    "SLURM_JOB_NODELIST": "node[003-004]",
    "SLURM_NTASKS": "2",
    "SLURM_TASKS_PER_NODE": "1(x2)",
    "SLURM_GPUS_ON_NODE": "8",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}
SLURM = SLURM_JOB | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[003-004]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_PROCID": "1",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
}
# the shell of salloc and a Jupyter server's terminal are steps of one task in a job of several
SHELL = SLURM | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
# mpirun -n 4, Open MPI 5; in a job of SLURM it also has the variables of the step that started its daemons
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "PMIX_NAMESPACE": "prterun-node1-77@1",
}


@pytest.mark.parametrize(
    "environment",
    [{}, SLURM_JOB, SHELL, SLURM_JOB | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, {"OMPI_COMM_WORLD_SIZE": "1"}],
    ids=["nothing", "salloc", "a shell that is a step", "a batch script", "mpirun -n 1"],
)
def test_alone(environment):
    assert find_place(environment) is None


def test_a_place_by_three_variables():
    assert find_place(GIVEN) == Place("host:1234", 4, 3)
    assert find_place({**SLURM, **GIVEN}) == Place("host:1234", 4, 3)  # said outright, it counts


def test_a_pod_of_an_indexed_job_or_a_job_set_knows_its_number():
    pod = {name: GIVEN[name] for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES")}
    assert find_place(pod | {"JOB_COMPLETION_INDEX": "2"}) == Place("host:1234", 4, 2)
    assert find_place({"JOB_COMPLETION_INDEX": "2"}) is None  # of jobs that are none of one run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": None}, "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES set, but not JAX_PROCESS_ID"),
        ({"JAX_PROCESS_ID": "4"}, r"process 4 of 4: ids are 0 ... 3"),
        ({"JAX_PROCESS_ID": "first"}, "JAX_PROCESS_ID='first' is not a number"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "coordinator address 'host' must be host:port"),
    ],
)
def test_variables_that_contradict(changes, message):
    with pytest.raises(ValueError, match=message):
        find_place({name: value for name, value in (GIVEN | changes).items() if value is not None})


def test_open_mpi_says_the_number_and_on_one_host_the_address_too():
    address = {"JAX_COORDINATOR_ADDRESS": "node1:8476"}
    assert find_place(SHELL | OPEN_MPI | address) == Place("node1:8476", 4, 3, (4, 5, 6, 7))
    here = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}
    first = find_place(here | {"OMPI_COMM_WORLD_RANK": "0"})
    assert find_place(here) == Place(first.coordinator, 4, 3) and first.coordinator.startswith("localhost:6")
    with pytest.raises(ValueError, match="process 3 of 4 on several hosts .*mpirun -x JAX_COORDINATOR_ADDRESS=HOST"):
        find_place(SLURM | OPEN_MPI)


def test_slurm_gives_a_task_per_node_all_its_gpus():
    """JAX by itself would give this task GPU 0 alone."""
    assert find_place(SLURM) == Place("node003:61441", 2, 1, None)


@pytest.mark.parametrize(
    ("tasks", "local", "visible", "devices"),
    [
        ("8(x2)", "3", "0,1,2,3,4,5,6,7", (3,)),  # a GPU per task, all visible
        ("2(x2)", "1", "0,1,2,3,4,5,6,7", (4, 5, 6, 7)),  # half of them per task
        ("4,2", "1", "0,1,2,3,4,5,6,7", (4, 5, 6, 7)),  # uneven: two tasks on this node, the second
        ("2(x2)", "1", "4,5,6,7", None),  # bound by SLURM: just what it sees
        ("8(x2)", "3", "3", None),
        ("2(x2)", "1", None, None),  # a CPU cluster
    ],
)
def test_slurm_shares_a_nodes_gpus_among_its_tasks(tasks, local, visible, devices):
    environment = SLURM | {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_LOCALID": local, "CUDA_VISIBLE_DEVICES": visible}
    assert find_place({name: value for name, value in environment.items() if value is not None}).devices == devices


def test_gpus_that_tasks_do_not_divide():
    with pytest.raises(ValueError, match="3 tasks on a node share 8 GPUs .*ntasks-per-node"):
        find_place(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "3(x2)"})


def test_gpus_that_jax_does_not_see():
    with pytest.raises(ValueError, match=r"SLURM gave this node 8 GPUs, but JAX sees none: .*\[gpu\]"):
        check_devices(SLURM, platform="cpu", local_devices=1, place=ALONE)
    check_devices(SLURM | {"JAX_PLATFORMS": "cpu"}, platform="cpu", local_devices=1, place=None)
    with pytest.raises(ValueError, match="process 1 sees 1 GPUs and should have 4 of them"):
        check_devices(SLURM, platform="gpu", local_devices=1, place=Place("node003:1", 2, 1, (4, 5, 6, 7)))


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("n[003-7],x", "n003"),
        ("n[3,5-7]", "n3"),
        ("n[1-2]-ib,x", "n1-ib"),
    ],
)
def test_first_host_of_a_node_list(nodes, host):
    assert first_host(nodes) == host


def test_tasks_of_each_node():
    assert tasks_per_node("2(x2),1") == [2, 2, 1]
