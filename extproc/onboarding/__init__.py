"""From nothing to a values file for one model, and what is done to it afterwards.

The charts are the source of truth: questions, checks and explanations come from their values, schema and
rendering. Nothing here talks to a cluster, and nothing but `canary` (and who is given a path to write) changes
a file.

    charts      where the charts are; their schema and defaults
    layering    values over a chart's defaults, as Helm lays them
    files       values files and Flux HelmReleases as they are in Git: read, bounded, with lines
    helm        `helm template`
    checking    what is wrong with values: problems by schema and by rules
    explaining  which values each rendered object is there for
    comparing   what differs between two renderings
    canary      start, shift, promote, abort: edits of the file
    drafting    answers -> a values file; questions: what is asked
"""
