// A server as a child process: what is left of it when it does not come up.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { expect, onTestFinished, test } from 'vitest'
import { Child } from '../src/federation/child.ts'

test('a server that is not ready in time is ended: the next start does not meet it on its port', async () => {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-child-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  const program = path.join(folder, 'server.mjs')
  writeFileSync(program, 'setTimeout(() => {}, 600_000)\n')
  const child = new Child({
    name: 'server',
    program: pathToFileURL(program),
    logs: folder,
    startLimitMs: 200,
    isReady: async () => false,
  })
  onTestFinished(() => child.kill())
  await expect(child.start()).rejects.toThrow('was not ready in time')
  expect(child.isRunning).toBe(false)
})
