// What programs need is read off them, not asked of them: the same as this computer's own tools say of its own programs.
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { expect, test } from 'vitest'
import { appletsOf, librariesOf } from '../src/elf.ts'

const shell = '/bin/bash'

test('of a program of this computer, the libraries are found that its loader loads', async () => {
  const loaded = new Set([...execFileSync('ldd', [shell], { encoding: 'utf8' }).matchAll(/^\s*(\S+) => \//gm)].map(match => match[1]))
  const named = (await librariesOf(shell)).filter(name => !name.startsWith('ld-linux'))
  expect(named).toContain('libc.so.6')
  for (const name of named) expect(loaded).toContain(name)
  await expect(librariesOf('/etc/hostname')).rejects.toThrow('/etc/hostname is no program of 64 bits')
})

test.skipIf(!existsSync('/bin/busybox'))("the applets of this computer's busybox are those that it lists", async () => {
  const listed = execFileSync('/bin/busybox', ['--list'], { encoding: 'utf8' }).trim().split('\n')
  expect(await appletsOf('/bin/busybox')).toEqual(listed)
  await expect(appletsOf(shell)).rejects.toThrow('names no applets')
})
