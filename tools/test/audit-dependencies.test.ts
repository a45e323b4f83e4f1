// The check of dependencies, with the real npm and a registry that knows of one hole: it fails on that, and only on that.
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, onTestFinished, test } from 'vitest'

const program = fileURLToPath(new URL('../audit-dependencies.mjs', import.meta.url))

/** A package that depends on `leaky`, as shipped or for development. */
function project(kind: 'shipped' | 'for development'): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-audit-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  const needs = { [kind === 'shipped' ? 'dependencies' : 'devDependencies']: { leaky: '1.0.0' } }
  writeFileSync(path.join(folder, 'package.json'), JSON.stringify({ name: 'probe', version: '1.0.0', ...needs }))
  const packages = {
    '': { name: 'probe', version: '1.0.0', ...needs },
    'node_modules/leaky': { version: '1.0.0', ...(kind === 'for development' && { dev: true }) },
  }
  writeFileSync(path.join(folder, 'package-lock.json'), JSON.stringify({ name: 'probe', version: '1.0.0', lockfileVersion: 3, packages }))
  return folder
}

async function registry(answer: (url: string, response: ServerResponse) => void): Promise<string> {
  const server = createServer((request, response) => {
    request.resume().on('end', () => answer(request.url as string, response))
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

const knowing = (severity: string) =>
  registry((url, response) => {
    const advisory = {
      id: 1,
      url: 'urn:advisory:1',
      title: 'it leaks',
      severity,
      vulnerable_versions: '<2.0.0',
      cwe: [],
      cvss: { score: 8 },
    }
    const packument = {
      name: 'leaky',
      'dist-tags': { latest: '2.0.0' },
      versions: Object.fromEntries(['1.0.0', '2.0.0'].map(version => [version, { name: 'leaky', version }])),
    }
    response.setHeader('content-type', 'application/json')
    response.end(JSON.stringify(url.includes('/advisories/bulk') ? { leaky: [advisory] } : packument))
  })

function check(folder: string, address: string): Promise<{ code: number | null; text: string }> {
  return new Promise(resolve => {
    const env = { PATH: process.env.PATH, HOME: folder, npm_config_registry: address, npm_config_cache: path.join(folder, 'cache') }
    const child = spawn(process.execPath, [program], { cwd: folder, env, stdio: ['ignore', 'pipe', 'pipe'] })
    let text = ''
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', chunk => (text += chunk))
    child.on('close', code => resolve({ code, text }))
  })
}

test('a hole of high severity in what is shipped fails, with its name', { timeout: 60_000 }, async () => {
  const { code, text } = await check(project('shipped'), await knowing('high'))
  expect(text).toContain('high: leaky 1.0.0: it leaks (urn:advisory:1)')
  expect(code).toBe(1)
})

test('one of low severity, or in what only development needs, does not', { timeout: 60_000 }, async () => {
  expect(await check(project('shipped'), await knowing('low'))).toMatchObject({
    code: 0,
    text: expect.stringMatching(/^0 of \d+ packages/),
  })
  expect(await check(project('for development'), await knowing('critical'))).toMatchObject({
    code: 0,
    text: expect.stringMatching(/^0 of \d+ packages/),
  })
})

test('a registry that cannot be asked is told as that, without its address, and fails nothing', { timeout: 60_000 }, async () => {
  const refusing = await registry((_, response) => response.writeHead(405).end())
  const { code, text } = await check(project('shipped'), refusing)
  expect(text).toMatch(/^not checked: /)
  expect(text).not.toContain(refusing)
  expect(code).toBe(0)
  const nobody = await check(project('shipped'), 'http://127.0.0.1:9')
  expect(nobody).toMatchObject({ code: 0, text: expect.stringMatching(/^not checked: /) })
})
