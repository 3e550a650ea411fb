"""The form in a browser: values in, files out.

It shows what the charts would make of the values and gives files to take along. It writes no file and talks to no
cluster. The fields come from the chart's schema: a new key in values.yaml is a new field here.

    form        schema -> sections and fields; essentials: which of them come first
    filling     what was typed -> the smallest values that say it
    keeping     a values file with other values: comments, order and quotes of what stays
    yaml_text   YAML as Helm reads it, and text that it reads back as meant
    products    the files: values.yaml, HelmRelease, Git patch
    opened      the file that the form was opened with
    desk        the use cases: form, preview, explanation, files
    latest      one rendering at a time, of those that wait the newest
    guard       who may ask: this page alone
    server      routes, and the loopback listener
"""
