"""RunPod on loopback: its GraphQL API and its REST API v2 over one store, and pods that one can log
in to. The clients are the unmodified ones; RUNPOD_API_BASE_URL sends them here.

    state.py    accounts, pods, prices and the bill, with an injected clock
    faults.py   what goes wrong, and whether it did
    graphql.py  the wire format of the `runpod` package
    rest.py     the wire format of REST v2
    server.py   the HTTP server, and what tests control it by
    pod.py      the process of one pod: an SSH server with its own home, variables and processes
    host.py     starts and kills pods
    client.py   starts an emulator in a process of its own, and asks it what happened
"""
