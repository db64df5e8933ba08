"""`csm bench`: load on a gateway, and what its callers heard.

command   the options, one point of load after another, what is printed and written
fleet     worker processes: started together, sent off together, their records gathered
worker    one process: many callers on one event loop, closed or open loop
caller    one utterance: every byte counted, every time noted
listener  playback simulated: buffer underruns of one utterance
stats     records to numbers; report, plot, progress show them
"""
