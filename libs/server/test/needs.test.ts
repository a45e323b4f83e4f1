import { afterEach, expect, test, vi } from 'vitest'
import { needs } from './needs.ts'

afterEach(() => {
  vi.unstubAllEnvs()
  vi.restoreAllMocks()
})

test('what is there is not skipped', () => {
  expect(needs('sh')).toBe(false)
})

test('what is missing is skipped aloud on a laptop, and fails in CI', () => {
  const warn = vi.spyOn(console, 'warn').mockImplementation(() => {})
  vi.stubEnv('CI', '')
  expect(needs('no-such-program')).toBe(true)
  expect(warn).toHaveBeenCalledWith(expect.stringMatching(/^SKIPPED: no-such-program is not on PATH/))
  vi.stubEnv('CI', 'true')
  expect(() => needs('no-such-program')).toThrow('NOT TESTED here')
})
