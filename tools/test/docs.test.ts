// The generated docs are in step with the code they are printed from, and links inside docs lead somewhere.
import { execFile } from 'node:child_process'
import { existsSync, globSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'

const root = fileURLToPath(new URL('../../', import.meta.url))

test('the tables of docs/generated are what the code says', async () => {
  const { stderr } = await promisify(execFile)(process.execPath, ['tools/generate-docs.ts', '--check'], { cwd: root })
  expect(stderr).toBe('')
})

test('every relative link in README.md and docs leads to a file', () => {
  const broken: string[] = []
  for (const page of ['README.md', ...globSync('docs/**/*.md', { cwd: root })]) {
    const text = readFileSync(path.join(root, page), 'utf8')
    for (const [, target] of text.matchAll(/\]\((?!https?:|#)([^)#]+)[^)]*\)/g))
      if (!existsSync(path.resolve(root, path.dirname(page), target as string))) broken.push(`${page}: ${target}`)
  }
  expect(broken).toEqual([])
})
