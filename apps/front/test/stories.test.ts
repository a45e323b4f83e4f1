// The stories over model partitions, in virtual time.
import { describe, vi } from 'vitest'
import { elapse } from './harness.ts'
import { ModelPartition } from './model-partition.ts'
import { tellStories } from './stories.ts'

describe('stories over model partitions', () => {
  tellStories({
    stories: 150,
    atOnce: 1,
    holdMs: 15_000,
    timeoutMs: 120_000,
    start: async partitions => {
      const models = await Promise.all(
        partitions.map(({ name, bus, cpus }) => new ModelPartition({ name, bus, machines: cpus.map(count => ({ cpus: count })) }).start()),
      )
      return async () => {
        for (const model of models) model.stop()
      }
    },
    run: async story => {
      vi.useFakeTimers()
      try {
        return await elapse(story())
      } finally {
        vi.useRealTimers()
      }
    },
  })
})
