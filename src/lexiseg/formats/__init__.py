"""What other people's tools read and write, one module for each; `table` lists what a run can be written as.

Out: a `records.PhotoRecord` tells what one photo shows, and a module turns records into its tool's form, one at a time
whatever their number. In: a module reads its tool's files as an `annotations.AnnotatedSet`, for `mask_input` and for
`data.user_masks`.
"""
