"""The reduction by Triton kernels; plain torch in `recording.reduction` is its reference.

It saves seconds a model where the weights come from a local NVMe disk, and nothing on a rented pod,
where the download takes longer than the reduction. A newcomer may ignore this room: nothing but
`recording.choose` imports it, and every number can be had without it.
"""
