"""The chain: a prompt's frames to watermarked audio, over three streams that overlap.

    Generation ─frames→ CodecLink ─samples→ WatermarkLink ─marked samples→ OutputQueue → the caller
    (backbone)          (codec)            (watermark)

One link a stage. A link opens its stream on one replica, feeds it, reads it, and opens it on another replica when the
first one dies: `resumes` says how.

`SpeechChain` is the codec, the watermark and the queue together. Several generations may run through one SpeechChain,
one after the other: the units of a long text, or of a turn of a conversation. Codec and watermark streams then go on
without a reset, so there is no seam in the audio:

    budget = ResumeBudget(settings.resumes)
    async with SpeechChain(stages, resumes=budget, timeout=timeout) as chain:   # leaves nothing running behind it
        async def speak_units():
            await chain.open()                                                  # may run beside generation.open()
            for unit in units:                                                  # each with its own prompt and seed
                async with Generation(stages, request_of(unit), resumes=budget, timeout=timeout) as generation:
                    started = await generation.open()
                    first_sample = chain.samples                                # where this unit begins in the audio
                    while (frames := await generation.read()) is not None:
                        await chain.feed(frames)                                # generation.log: all of them
            chain.finish()                                                      # the look-ahead comes out
        chain.spawn(speak_units())                                              # what fails in it, `output` raises
        async for samples in chain.output():                                    # float32 [T], marked
            ...

Rules: `finish` is called once, after the last generation. The watermark keeps its look-ahead (`Stages.info`) until more
audio comes or `finish` is called: a speaker who must wait for text calls `pause`, whose silence pushes it out. Leaving
the `async with` at any time, an interruption for example, cancels every stream: their slots are free at once.

Only the watermark's output enters the queue, so unmarked audio has no way out.
"""

from gateway.chain.chain import SpeechChain
from gateway.chain.generation import Generation
from gateway.chain.resumes import ResumeBudget

__all__ = ["Generation", "ResumeBudget", "SpeechChain"]
