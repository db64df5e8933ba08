"""`csm bench`: load on a gateway, and what its callers heard of it.

command   the options, one point of load after another, what is printed and written
fleet     worker processes: started together, told to go together, their records gathered
worker    one process: many callers on one event loop, closed or open loop
caller    one utterance: every byte counted, every moment noted
listener  whether somebody who plays it would have run dry
stats     records to numbers; report, plot, progress show them
"""
