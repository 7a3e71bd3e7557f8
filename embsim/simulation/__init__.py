"""Schedules with a clock: how long they take on some hardware, and how stale their lookups are.

pipelines     schedules as operations with waits            hazards   what may be wrong with them
operations    the form of such data                         timeline  when each of them runs
hardware      chips and pods (chips.toml)                   stages    seconds of each stage
popularity    how often rows are asked for                  traffic   rows and bytes of a step
workload      tables and dense models                       zoo       published ones
reuse         tables by published histograms of reuse       measured  workloads of a user's ids
staleness     updates that lookups miss                     simulate  all of it, side by side
planner       TorchRec's estimate, to compare               trace     for Perfetto
replay        numbers under the clock                       pictures  PNG
"""
