"""Draft, check, explain and edit the values file of one model.

The charts are the source of truth: questions, checks and explanations come from their values, schema and
rendering. Nothing here talks to a cluster. Only `canary` changes a file, and functions that get a path to write
to.

    charts      the charts: their place, schema and defaults
    layering    values over a chart's defaults, merged as by Helm
    files       values files and Flux HelmReleases as in Git: read, bounded, with line numbers
    helm        `helm template`
    checking    problems of values, by schema and by rules
    explaining  the values that each rendered object depends on
    comparing   differences between two renderings
    dumping     values as YAML text that Helm reads back unchanged
    editing     the editor of values in a text: everything outside of an edit stays
    layout      places in a text, for the editor
    canary      start, shift, promote, abort: edits of the file
    drafting    answers -> a values file; questions: the list of questions
"""
