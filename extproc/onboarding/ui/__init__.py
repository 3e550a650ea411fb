"""Serve the form in a browser: values in, files out.

The form shows the rendering of the values and offers files to download. The server writes no file and talks to no
cluster. The fields come from the chart's schema: a new key in values.yaml is a new field here.

    form        schema -> sections and fields; essentials: the fields that come first
    filling     the input -> the smallest values that express it
    products    the files: values.yaml, HelmRelease, Git patch
    opened      the file that the form was opened with
    desk        the use cases: form, preview, explanation, files
    latest      one rendering at a time; of the waiting ones only the newest
    guard       admits requests of this page only
    server      routes, and the loopback listener
"""
