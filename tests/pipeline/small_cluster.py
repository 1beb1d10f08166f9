"""A Ray cluster on this machine: prints its address, starts another machine for every line "CPUS" of its input, ends
when that closes. python small_cluster.py CPUS OF EACH MACHINE"""

import sys

from ray.cluster_utils import Cluster

if __name__ == "__main__":
    first, *others = map(int, sys.argv[1:])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": first, "include_dashboard": False})
    try:
        for cpus in others:
            cluster.add_node(num_cpus=cpus)
        print("address", cluster.address, flush=True)
        for line in sys.stdin:
            cluster.add_node(num_cpus=int(line))
    finally:
        cluster.shutdown()
