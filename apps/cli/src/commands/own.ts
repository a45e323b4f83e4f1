// `muster key` and `muster password`: what people change of their own, without an admin.
import { keys as calls, type OwnKey, session } from '@muster/shared/contract/session'
import type { Command } from 'commander'
import { type Cli, examples, type Fill, formatOf, remark, say } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt, CliError } from '../exit-codes.ts'
import { readKeys } from '../files.ts'
import { type Shape, showList } from '../output/show.ts'
import { type Config, readConfig, writeConfig } from '../profiles.ts'
import { checked } from '../schema-options.ts'
import { newPassword, passwordFrom } from '../secrets.ts'

const keyShape: Shape<OwnKey> = {
  columns: [
    { title: 'NAME', text: ({ name }) => name },
    { title: 'TYPE', text: ({ key }) => key.split(' ')[0] ?? '' },
    { title: 'COMMENT', text: ({ key }) => key.split(' ').slice(2).join(' '), least: 10 },
    { title: 'KEY', text: ({ key }) => key.split(' ')[1] ?? '', wide: true },
  ],
  name: ({ name }) => name,
  none: 'You have no SSH keys here; add one with: muster key add laptop ~/.ssh/id_ed25519.pub',
}

/** `muster key` with its subcommands. */
export const fillKey: Fill = (command, cli) => {
  command.description('Your own SSH keys: they are put on what you deploy, and on the rescue systems you boot.')
  examples(command, ['key list', 'key add laptop ~/.ssh/id_ed25519.pub', 'key remove laptop'])
  const list = command.command('list').alias('ls').summary('list your SSH keys').description(`${calls.list.summary}.`)
  examples(list, ['key list', 'key list -o json'])
  list.action(async () => {
    const { client } = await connect(cli, list)
    showList(cli, formatOf(list), await attempt('list your SSH keys', client.keys.list()), keyShape)
  })
  addAdd(command, cli)
  const remove = command.command('remove').alias('delete').summary('remove one of your SSH keys').argument('<name>', 'name of the key')
  remove.description(`${calls.delete.summary}. ${calls.delete.description}`)
  examples(remove, ['key remove laptop'])
  remove.action(async (name: string) => {
    const { client } = await connect(cli, remove)
    await attempt(`remove the SSH key ${name}`, client.keys.delete(checked(calls.delete, { name })))
    say(cli, `SSH key ${name} removed; machines that are deployed already keep it`)
  })
}

function addAdd(parent: Command, cli: Cli): void {
  const command = parent
    .command('add')
    .summary('add an SSH key')
    .argument('<name>', 'what you call it')
    .argument('<file>', 'file that holds the public key')
  command.description(`${calls.put.summary}. ${calls.put.description}`)
  examples(command, ['key add laptop ~/.ssh/id_ed25519.pub'])
  command.action(async (name: string, file: string) => {
    const [key, ...others] = await readKeys([file])
    if (key === undefined || others.length > 0) throw new CliError('usage', `${file} must hold one public key`)
    const input = checked(calls.put, { name, key })
    const { client } = await connect(cli, command)
    await attempt(`add the SSH key ${name}`, client.keys.put(input))
    say(cli, `SSH key ${name} added`)
  })
}

/** `muster password`. */
export const fillPassword: Fill = (command, cli) => {
  command.description(
    `${session.password.summary}. Both are asked for without showing them, or come from files. All of your sessions end, on all computers; the profile ` +
      'of this one is logged in anew. Who has forgotten it asks an admin: muster user password',
  )
  command
    .option('--old-password-file <file>', 'a file that holds the password in force, as its only line')
    .option('--password-file <file>', 'a file that holds the new one, as its only line')
  examples(command, ['password', 'password --old-password-file old.txt --password-file new.txt'])
  command.action(async ({ oldPasswordFile, passwordFile }: { oldPasswordFile?: string; passwordFile?: string }) => {
    const { client, url, token } = await connect(cli, command)
    const { caller } = await attempt('ask who I am', client.session.whoami({}))
    const password = await passwordFrom(cli, { passwordFile: oldPasswordFile, question: `password of ${caller.name} at ${url}: ` })
    const chosen = await newPassword(cli, caller.name, passwordFile === undefined ? {} : { passwordFile })
    const input = checked(session.password, { password, newPassword: chosen })
    const begun = await attempt('change the password', client.session.password(input))
    say(cli, `password of ${caller.name} changed; all other sessions are ended`)
    await keepSession(cli, { before: token, after: begun.token })
  })
}

/** The new session in place of the old one, wherever that was kept; a token of another kind is good as before. */
async function keepSession(cli: Cli, { before, after }: { before: string; after: string }): Promise<void> {
  const config = await readConfig(cli)
  const kept = Object.entries(config?.profiles ?? {}).filter(([, { token, user }]) => token === before && user !== undefined)
  if (!config || kept.length === 0) {
    if (before.startsWith('ms1.')) remark(cli, 'the session that this was asked with is over too: log in again')
    return
  }
  const profiles: Config['profiles'] = {
    ...config.profiles,
    ...Object.fromEntries(kept.map(([name, profile]) => [name, { ...profile, token: after }])),
  }
  await writeConfig(cli, { ...config, profiles })
  remark(cli, `profile ${kept.map(([name]) => name).join(', ')} is logged in anew`)
}
