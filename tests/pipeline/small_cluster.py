"""A Ray cluster on this machine: prints its address, does what the lines of its input say, ends when that closes.

    python small_cluster.py CPUS OF EACH MACHINE

Lines are the CPUS of another machine, "remove" for the last one, and "drain SECONDS", which announces that the last one
will be gone in so many seconds, and then removes it. All machines but the first have the label zone=b and a resource,
disk.
"""

import subprocess
import sys
import time

from ray.cluster_utils import Cluster


def drain(cluster: Cluster, node: str, seconds: int) -> None:
    """What a cloud does that wants its machine back."""
    options = [f"--address={cluster.address}", f"--node-id={node}", f"--deadline-remaining-seconds={seconds}"]
    options += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=wanted elsewhere"]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", *options], check=True, stdout=sys.stderr)
    time.sleep(seconds)


if __name__ == "__main__":
    first, *others = map(int, sys.argv[1:])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": first, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=cpus, labels={"zone": "b"}, resources={"disk": 1}) for cpus in others]
        print("address", cluster.address, flush=True)
        for line in sys.stdin:
            word, *rest = line.split()
            if word.isdigit():
                nodes.append(cluster.add_node(num_cpus=int(word)))
                continue
            node = nodes.pop()
            if word == "drain":
                drain(cluster, node.node_id, int(rest[0]))
            cluster.remove_node(node, allow_graceful=False)
    finally:
        cluster.shutdown()
