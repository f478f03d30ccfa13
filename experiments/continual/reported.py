"""What others report on the same streams: the average accuracy after the last task, over 5 to 20 seeds.

Of l2, online EWC and MAS: Hsu et al. 2018, with the same network and rate, four epochs a task instead of a number of
steps. All others: van de Ven, Tuytelaars and Tolias 2022, with the same network, rate and steps; plain and joint of
the permuted stream as in van de Ven and Tolias 2019.
"""

REPORTED: dict[str, dict[str, float]] = {
    "split-task": {
        "plain": 0.843,
        "l2": 0.982,
        "ewc": 0.991,
        "online-ewc": 0.980,
        "si": 0.992,
        "mas": 0.992,
        "lwf": 0.996,
        "joint": 0.997,
    },
    "split-domain": {
        "plain": 0.601,
        "l2": 0.660,
        "ewc": 0.630,
        "online-ewc": 0.573,
        "si": 0.669,
        "mas": 0.686,
        "lwf": 0.712,
        "joint": 0.984,
    },
    "split-class": {
        "plain": 0.199,
        "l2": 0.225,
        "ewc": 0.206,
        "online-ewc": 0.198,
        "si": 0.212,
        "mas": 0.195,
        "lwf": 0.219,
        "joint": 0.979,
    },
    "permuted": {"plain": 0.785, "ewc": 0.943, "online-ewc": 0.944, "si": 0.953, "lwf": 0.726, "joint": 0.976},
}
