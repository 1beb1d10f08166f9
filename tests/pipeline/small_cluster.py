"""A Ray cluster of two machines (1 and 2 CPUs) on this one: prints its address, ends when its input closes."""

import sys

from ray.cluster_utils import Cluster

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=2)
        print("address", cluster.address, flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()
