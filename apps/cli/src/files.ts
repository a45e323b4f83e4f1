// Files that the user names: texts, and public keys.
import { readFile } from 'node:fs/promises'
import { CliError } from './exit-codes.ts'

/** The text of a file that the user named. */
export async function readText(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    throw new CliError('usage', `read ${path}: ${(error as Error).message}`, { cause: error })
  }
}

/** The public keys in files, without blank lines and comments. A private key is refused: it would be sent and kept. */
export async function readKeys(paths: readonly string[]): Promise<string[]> {
  const texts = await Promise.all(paths.map(readText))
  return texts.flatMap((text, index) => {
    if (text.includes('PRIVATE KEY')) throw new CliError('usage', `${paths[index]} holds a private key; give the .pub file beside it`)
    return text
      .split('\n')
      .map(line => line.trim())
      .filter(line => line !== '' && !line.startsWith('#'))
  })
}
