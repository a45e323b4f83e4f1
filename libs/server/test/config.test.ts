import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { inspect } from 'node:util'
import type { Secret } from '@muster/shared/secret'
import { expect, expectTypeOf, onTestFinished, test } from 'vitest'
import { z } from 'zod'
import { ConfigError, keptFor, loadConfig, secret, tlsOf, variable, wholeNumber } from '../src/config.ts'

const variables = {
  port: variable('MUSTER_PORT', wholeNumber({ min: 0, max: 65_535 }).default(8080)),
  name: variable('MUSTER_NAME', z.string().regex(/^[a-z]+$/, 'must be lower-case letters')),
  database: secret('DATABASE_URL', z.string().optional()),
  key: secret('MUSTER_KEY', z.string().min(4)),
}

test('settings come from the environment, with their types and defaults', () => {
  const { settings, lines, unknown } = loadConfig(variables, {
    MUSTER_NAME: 'lon',
    MUSTER_KEY: 'hunter2',
    MUSTER_PROT: '1',
    HOME: '/',
    DATABASE_URL: '',
  })
  expectTypeOf(settings.port).toEqualTypeOf<number>()
  expectTypeOf(settings.database).toEqualTypeOf<Secret | undefined>()
  expectTypeOf(settings.key).toEqualTypeOf<Secret>()
  expect(settings).toMatchObject({ port: 8080, name: 'lon', database: undefined })
  expect(settings.key.reveal()).toBe('hunter2')
  expect(lines).toEqual(['MUSTER_PORT=8080 (default)', 'MUSTER_NAME=lon', 'DATABASE_URL= (default)', 'MUSTER_KEY=***'])
  expect(inspect(settings) + JSON.stringify(settings) + lines).not.toContain('hunter2')
  expect(unknown).toEqual(['MUSTER_PROT'])
})

test('the password within a URL is not printed either', () => {
  const front = {
    url: variable(
      'MUSTER_FRONT',
      z.string().refine(text => !text.includes('bad'), 'must be good'),
    ),
  }
  const given = 'https://olga:hunter2@front.example/a@b,nats://tls:hunter3@10.0.0.1:4222'
  const { settings, lines } = loadConfig(front, { MUSTER_FRONT: given })
  expect(settings.url).toBe(given)
  expect(lines).toEqual(['MUSTER_FRONT=https://***@front.example/a@b,nats://***@10.0.0.1:4222'])
  expect(() => loadConfig(front, { MUSTER_FRONT: 'http://olga:hunter2@bad' })).toThrow('MUSTER_FRONT="http://***@bad": must be good')
})

test('everything that is wrong is said at once, secrets unsaid', () => {
  const error = (() => {
    try {
      loadConfig(variables, { MUSTER_PORT: '70000', MUSTER_KEY: 'abc', MUSTER_KEY_FILE: undefined })
    } catch (error) {
      return error as ConfigError
    }
    throw new Error('it was accepted')
  })()
  expect(error).toBeInstanceOf(ConfigError)
  expect(error.problems).toHaveLength(3)
  expect(error.message).toMatch(/MUSTER_PORT="70000"/)
  expect(error.message).toMatch(/MUSTER_NAME is not set/)
  expect(error.message).toMatch(/MUSTER_KEY: /)
  expect(error.message).not.toContain('abc')
})

test('a value may be in a file', () => {
  const folder = mkdtempSync(path.join(tmpdir(), 'muster-config-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  const file = path.join(folder, 'key')
  writeFileSync(file, 'from a file\n')
  expect(loadConfig(variables, { MUSTER_NAME: 'a', MUSTER_KEY_FILE: file }).settings.key.reveal()).toBe('from a file')
  expect(() => loadConfig(variables, { MUSTER_NAME: 'a', MUSTER_KEY_FILE: `${file}s` })).toThrow(/MUSTER_KEY_FILE: ENOENT/)
  expect(() => loadConfig(variables, { MUSTER_NAME: 'a', MUSTER_KEY_FILE: file, MUSTER_KEY: 'here' })).toThrow(
    'MUSTER_KEY and MUSTER_KEY_FILE are both set',
  )
})

test('how long something is kept is a duration, not too short a one, or for ever', () => {
  const kept = { events: variable('MUSTER_KEEP_EVENTS', keptFor(30 * 86_400_000, '1d')) }
  const read = (MUSTER_KEEP_EVENTS?: string) => loadConfig(kept, { MUSTER_KEEP_EVENTS }).settings.events
  expect([undefined, '7d', '48h', 'for-ever'].map(read)).toEqual([30 * 86_400_000, 7 * 86_400_000, 48 * 3_600_000, undefined])
  for (const wrong of ['1h', '0d', 'ever', '30'])
    expect(() => read(wrong)).toThrow(`MUSTER_KEEP_EVENTS="${wrong}": must be a duration of at least 1d, such as 90d, or for-ever`)
})

test('a certificate of its own is for all names the host is known by, and needs a folder', () => {
  const given = {
    tls: 'own',
    tlsFolder: '/tls',
    tlsPort: 8443,
    tlsNames: [],
    host: '192.0.2.7',
    url: 'https://lon1.example.org:8443',
  } as const
  expect(tlsOf(given)?.own?.names).toEqual(expect.arrayContaining(['lon1.example.org', 'localhost', '127.0.0.1', '192.0.2.7']))
  expect(tlsOf({ ...given, host: '0.0.0.0' })?.own?.names).not.toContain('0.0.0.0')
  expect(tlsOf({ ...given, tlsNames: ['muster.example.org'] })?.own?.names).toEqual(['muster.example.org'])
  expect(tlsOf({ ...given, tls: 'files' })).toEqual({ folder: '/tls', port: 8443, own: undefined })
  expect(tlsOf({ ...given, tls: 'files', tlsFolder: undefined })).toBeUndefined()
  expect(() => tlsOf({ ...given, tlsFolder: undefined })).toThrow(/MUSTER_TLS_DIR is not set: MUSTER_TLS=own/)
})
