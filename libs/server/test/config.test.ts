import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { inspect } from 'node:util'
import type { Secret } from '@muster/shared/secret'
import { expect, expectTypeOf, onTestFinished, test } from 'vitest'
import { z } from 'zod'
import { ConfigError, loadConfig, secret, variable, wholeNumber } from '../src/config.ts'

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
