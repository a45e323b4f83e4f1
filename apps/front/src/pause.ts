// Waiting, bounded and interruptible.

/** Resolves after `ms`, or at once when `signal` aborts. Never rejects: whoever waits looks at the signal anyway. */
export function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise(resolve => {
    const end = () => {
      clearTimeout(timer)
      signal?.removeEventListener('abort', end)
      resolve()
    }
    const timer = setTimeout(end, Math.max(0, ms))
    if (signal?.aborted) end()
    else signal?.addEventListener('abort', end, { once: true })
  })
}

/** Between half of `ms` and one and a half: those who were refused together do not come back together. */
export function jittered(ms: number): number {
  return ms * (0.5 + Math.random())
}
