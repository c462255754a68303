"""What every store gets around it: retries, limits, tracing, and the operator's prohibitions.

Order, from the outside: `restricted(retrying(limited(watched(traced(driver)))))`. Retry is outside the
limit, so that a back-off sleep holds no slot, and outside the stall clock, so that a stalled read goes on
where it did; tracing is innermost, so that each try is seen. A wrapped `Source` is a `Source`, a wrapped
`Driver` a `Driver`.
"""
